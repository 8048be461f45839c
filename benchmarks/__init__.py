"""Benchmarks: keyart beside the alternatives a user would pick, in one run, in one table.

A benchmark is a module of this package with `Config`, a dataclass of its options, and `bench(config, console) -> rows`, and
one line here.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.console import Console

BENCHMARKS = {
    "prepare": "raw tables -> shards, beside DuckDB's sort alone and beside pandas",
    "feed": "shards -> batches, beside a row for each impression and torch-rechub's loader",
    "train": "batches -> weights, beside a history read for each impression and torch-rechub's trainer",
    "cold": "artworks, titles and members that training never saw, beside a training that saw them",
    "explore": "a stream chosen by Thompson sampling, beside greedy, epsilon-greedy, LinUCB and uniform, by the truth",
    "titles": "titles ranked for members, beside popularity, item-kNN, EASE, and SASRec and HSTU of RecTools",
    "serve": "a request's cost on one core, beside torch eager, torch.compile, OpenVINO and torch-rechub's own export",
    "load": "keyart serve under load and under generated invalid requests: requests a second, latency, memory",
    "attacks": "keyart serve under costly bodies, held connections and replaced bundles: what everybody else is given",
    "value": "off-policy estimates, beside Open Bandit Pipeline on the same arrays",
}
MODULE_OF = {"cold": "cold_start", "load": "serve_load", "attacks": "serve_attacks"}
"""Modules of benchmarks whose module has another name."""


def load(name: str) -> ModuleType:
    """The module of a benchmark; UserError where the name is unknown."""
    from foundation.errors import UserError

    if name not in BENCHMARKS:
        near = get_close_matches(name, BENCHMARKS, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Benchmarks: {', '.join(BENCHMARKS)}."
        raise UserError(f"{name}: unknown benchmark. {hint}")
    return import_module(f"benchmarks.{MODULE_OF.get(name, name)}")


def parse_command(arguments: list[str]) -> tuple[str, type | None, list[str]]:
    """Split the words after `keyart bench` into the command's name, the config's class (None: all benchmarks) and the options."""
    if arguments and not arguments[0].startswith("-"):
        return f"bench {arguments[0]}", load(arguments[0]).Config, arguments[1:]
    if {"-h", "--help"} & set(arguments):
        print("usage: keyart bench [NAME] [--json FILE] ...\n")
        print("\n".join(f"  {name:<10} {summary}" for name, summary in BENCHMARKS.items()))
        print("\nkeyart bench NAME --help explains one; without NAME all are run, with what they measure by default")
        raise SystemExit(0)
    return "bench", None, arguments


def run(settings: Any, json: Path | None, progress: Console, output: Console) -> None:
    """Run one benchmark by its config, or all by their defaults (None); prints tables to `output`, writes rows to the file
    `json`."""
    from benchmarks.table import print_table, write_json
    from configs.paths import local_path
    from foundation.errors import UserError
    from foundation.output_path import require_file, require_folder

    if json is not None:
        require_file(json)
        if not json.parent.is_dir():
            raise UserError(f"{json}: there is no folder {json.parent}. Make it, or name a file in an existing folder.")
    work = getattr(settings, "work", "")
    if work:
        require_folder(Path(local_path(work)))
        if not Path(work).is_dir():
            raise UserError(f"work={work}: there is no such folder. Make it, or name an existing one.")
    chosen = [load(name).Config() for name in BENCHMARKS] if settings is None else [settings]
    rows = []
    for config in chosen:
        measured = import_module(type(config).__module__).bench(config, progress)
        print_table(measured, output)
        rows += measured
    if json is not None:
        write_json(rows, json)
        output.print(f"{json} written", soft_wrap=True)
