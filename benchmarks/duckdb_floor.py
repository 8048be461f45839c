"""The floor under `keyart prepare`: DuckDB alone orders plays and impressions by member and time and writes them back.

Called as a process: `python -m benchmarks.duckdb_floor DATASET OUT`. No histories, no vocabularies, no check, no arrays:
the least that any tool must do to put a member's rows together.
"""

import sys
from pathlib import Path

import duckdb

from benchmarks.copy_members import quoted
from datamodules.contract.tables import IMPRESSIONS, PLAYS


def main(dataset: Path, out: Path) -> None:
    """Order both tables."""
    out.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as engine:
        engine.execute(f"SET TimeZone = 'UTC'; SET temp_directory = {quoted(out / 'spill')}")
        for table, time in ((PLAYS, "played_at"), (IMPRESSIONS, "shown_at")):
            engine.execute(
                f"COPY (SELECT * FROM read_parquet($files) ORDER BY member_id, {time}) TO '{out / table.name}.parquet'",
                {"files": [str(path) for path in table.files(dataset)]},
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
