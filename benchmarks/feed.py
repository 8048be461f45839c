"""`keyart bench feed`: shards -> batches, beside a row for each impression and beside torch-rechub's loader.

`per-impression` gathers the same columns with numpy from rows that hold each impression's whole history; `floor` is
numpy indexing the bytes of one epoch of keyart's feed once and nothing else.
"""

from dataclasses import dataclass

from rich.console import Console

from benchmarks.side_by_side import (
    MATERIALISED,
    PEER,
    SideBySideConfig,
    alternate,
    materialise,
    measured_shards,
    our_command,
    peer_command,
    rates,
    reported_rows,
)
from benchmarks.table import OURS, Row

NAME = "feed"


@dataclass(frozen=True, kw_only=True)
class Config(SideBySideConfig):
    """Options of the benchmark."""


def bench(config: Config, console: Console) -> list[Row]:
    """Measure every subject; subjects that are left out are reported on the console, with the reason."""
    with measured_shards(config, NAME, console) as (shards, work):
        materialise(shards, work, config)
        subjects = {
            subject: our_command(NAME, subject, shards, work, config) for subject in (OURS, "floor", MATERIALISED)
        }
        subjects[PEER] = peer_command(NAME, work, config)
        results = alternate(NAME, subjects, config.repeats, work, console)
    padding = {"padding": ("share of encoded positions that is padding", "%")}
    return rates(NAME, "batches made", results) + reported_rows(NAME, padding, results)
