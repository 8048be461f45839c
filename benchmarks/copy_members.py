"""A dataset made larger: its members copied under new ids, with their plays and impressions."""

import shutil
from pathlib import Path

import duckdb

from datamodules.contract.tables import ARTWORKS, IMPRESSIONS, PLAYS, TITLES
from foundation.errors import UserError
from foundation.shell import shell_word

TABLES = ((PLAYS, ("member_id",)), (IMPRESSIONS, ("member_id", "impression_id")))


def copy_members(source: Path, out: Path, impressions: int) -> int:
    """Write a dataset of about `impressions` impressions, one file per copy; returns its number of impressions.

    All copies but the last are complete; of the last one, members are kept by hash to reach the number. Images are not
    copied, because `keyart prepare` does not read them.
    """
    for table in (TITLES, ARTWORKS):
        files = table.files(source)
        if not files:
            raise UserError(
                f"{source}: is not a dataset: {table.name}.parquet is missing. Run keyart check {shell_word(source)}."
            )
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[0], out / files[0].name)
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'; SET memory_limit = '2GB'; SET enable_progress_bar = false")
        files_of = {table: [str(path) for path in table.files(source)] for table, _ in TABLES}
        complete, missing = divmod(impressions, _count(engine, files_of[IMPRESSIONS]))
        shares = [1.0] * complete + ([missing / _count(engine, files_of[IMPRESSIONS])] if missing else [])
        for table, ids in TABLES:
            (out / table.name).mkdir()
            for copy, share in enumerate(shares):
                renamed = ", ".join(f"{name} || '-{copy}' AS {name}" for name in ids)
                part = quoted(out / table.name / f"part-{copy:04d}.parquet")
                engine.execute(
                    f"COPY (SELECT * REPLACE ({renamed}) FROM read_parquet($files, hive_partitioning = false) "
                    f"WHERE hash(member_id) % 1000000 < $least) TO {part}",
                    {"files": files_of[table], "least": round(1_000_000 * share)},
                )
        return _count(engine, [str(path) for path in IMPRESSIONS.files(out)])


def quoted(path: Path) -> str:
    """A path as a string literal of SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def _count(engine: duckdb.DuckDBPyConnection, files: list[str]) -> int:
    (row,) = engine.execute("SELECT count(*) FROM read_parquet($files)", {"files": files}).fetchall()
    return int(row[0])
