"""`keyart bench train`: training steps that encode a member's plays once, beside ones that encode a history per impression.

`per-impression` is keyart's own model on rows that hold each impression's whole history, padded, as most libraries have
it; `torch-rechub` is its two-tower model (DSSM: the mean of the history, two small networks, a cosine) of equal width in
its own trainer, on the same log: the ids and keyart's features of titles and artworks, the image embedding included.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

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
from benchmarks.subprocess_usage import measure
from benchmarks.table import OURS, Row
from foundation.errors import UserError
from train.run import METRICS

NAME = "train"
OWN_FIGURES = {
    "waiting": ("share of time that steps wait for data", "%"),
    "flops": ("model FLOP utilisation: share of what a large matrix product reaches", "%"),
    "device_gigabytes": ("GPU memory", "GB"),
}


@dataclass(frozen=True, kw_only=True)
class Config(SideBySideConfig):
    """Options of the benchmark."""

    epochs: int = 1
    """Epochs of the two trainings whose validation log losses are compared; 0 leaves them out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.epochs < 0:
            raise UserError(f"epochs={self.epochs}: must be at least 0.")


def bench(config: Config, console: Console) -> list[Row]:
    """Measure every subject; subjects that are left out are reported on the console, with the reason."""
    with measured_shards(config, NAME, console) as (shards, work):
        materialise(shards, work, config)
        subjects = {subject: our_command(NAME, subject, shards, work, config) for subject in (OURS, MATERIALISED)}
        subjects[PEER] = peer_command(NAME, work, config)
        results = alternate(NAME, subjects, config.repeats, work, console)
        attention = {OURS: our_command(NAME, OURS, shards, work, config, "attention")}
        attention_results = alternate(f"{NAME}, attention", attention, config.repeats, work, console)
        rows = rates(NAME, "training", results) + reported_rows(NAME, OWN_FIGURES, results)
        rows += rates(NAME, "training, attention", attention_results)
        if config.epochs:
            rows += _quality(config, shards, work, console)
    return rows


def _quality(config: Config, shards: Path, work: Path, console: Console) -> list[Row]:
    """Validation log loss after the same epochs of `keyart fit`, with one encoding per member and with one per impression;
    all other settings are the defaults."""
    loss = {}
    for subject, window in ((OURS, ()), (MATERIALISED, ("--window", "1"))):
        console.print(f"bench {NAME}: trains for the quality of {subject}, epochs: {config.epochs}")
        options = {"--epochs": config.epochs, "--validations_per_epoch": 1, "--model.width": config.width}
        options |= {"--model.history.span": config.plays}
        arguments = ["fit", str(shards), str(work / subject), *window]
        for name, value in options.items():
            arguments += [name, str(value)]
        measure([sys.executable, "-P", "-m", "keyart", *arguments])
        loss[subject] = json.loads((work / subject / METRICS).read_text(encoding="utf-8"))["validation_log_loss"]
    figure = f"validation log loss, epochs: {config.epochs}"
    rows = [
        Row(benchmark=NAME, subject=subject, figure=figure, unit="nat", value=value) for subject, value in loss.items()
    ]
    difference = loss[OURS] - loss[MATERIALISED]
    more = f"{figure}, above {MATERIALISED}"
    return [*rows, Row(benchmark=NAME, subject=OURS, figure=more, unit="nat", value=difference)]
