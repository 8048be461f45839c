"""Run folders: the files of one training, and reading them.

`config.yaml` (everything the run was made of), `checkpoints/last.ckpt`, `best.safetensors` while it trains,
`weights.safetensors` and `metrics.json` when it is done, `vocabularies.json`, `log.csv`. No pickled classes: weights are
safetensors, checkpoints hold tensors and numbers only.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from safetensors import safe_open

from datamodules.contract.tables import CONTRACT_VERSION
from datamodules.shards.shard import Shards
from datamodules.shards.vocabulary import Vocabularies, load_vocabularies
from foundation.atomic import atomic_file
from foundation.context import ContextFeature, categories_of, load_context
from foundation.errors import UserError
from foundation.fingerprint import file_digest
from foundation.output_path import LOCK_SUFFIX
from foundation.shell import shell_word
from foundation.stored import FILES, changed_file, files_beside, read_json, reading, warn_unverified
from models.history import HistoryConfig
from models.linear_title_models import LowRankEaseConfig, NextItemConfig
from models.own_taste import OWN_TASTE_BUFFERS
from models.two_tower import Content, Sizes, TwoTower, TwoTowerConfig
from train.embed_config import EMBEDDING_RECORD, ENCODER

CONFIG, WEIGHTS, METRICS, VOCABULARIES = "config.yaml", "weights.safetensors", "metrics.json", "vocabularies.json"
REMEDY = "Train again with keyart fit."
FIELDS = ("fingerprint", "shards", "shards_fingerprint", "test_from", "image_encoder", "provenance", "fit")
FIT_FIELDS = ("model", "optimiser", "epochs", "batch", "seed")
"""What every `config.yaml` has, and its section `fit`: a file that was cut short lacks the last ones."""
REMOVED_HISTORY_FIELDS = {"heads": 1, "time": False, "gated": True}
"""Former fields of the history encoder, with the value that describes today's encoder."""
RENAMED_WEIGHT = (".band.bias_HS", ".band.bias_1S")
"""Suffixes of weight names in runs that have such fields, and today's."""


def sizes_of(vocabularies: Vocabularies, features: tuple[ContextFeature, ...]) -> Sizes:
    """Rows of the trained tables."""
    return Sizes(
        titles=vocabularies["titles"].trained_rows,
        artworks=vocabularies["artworks"].trained_rows,
        people=len(vocabularies["people"]),
        genres=len(vocabularies["genres"]),
        context=features,
        categories={name: len(vocabularies[name]) for name in categories_of(features)},
    )


def content_of(shards: Shards, embedding: torch.Tensor) -> Content:
    """The catalogue and the embedding as the model's input."""
    catalogue = shards.catalogue

    def rows(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).long()

    return Content(
        title_genres_IL=rows(catalogue.title_genres),
        title_people_IL=rows(catalogue.title_people),
        title_year_I=torch.from_numpy(catalogue.title_year),
        title_artworks_IL=rows(catalogue.title_artworks),
        artwork_people_AL=rows(catalogue.artwork_people),
        artwork_genres_AL=rows(catalogue.artwork_genres),
        artwork_image_AE=embedding,
    )


def provenance() -> dict[str, str]:
    """Versions, and the git commit where the code lies in a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8").stdout.strip()
    except OSError:  # git is not installed
        commit = ""
    versions = {name: version(name) for name in ("keyart", "torch", "torchvision", "pytorch-lightning", "numpy")}
    return versions | {"commit": commit or "not in a checkout"}


def write_config(run: Path, record: dict[str, Any]) -> None:
    """Write `config.yaml`."""
    with atomic_file(run / CONFIG) as partial:
        partial.write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8")


def write_metrics(run: Path, record: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Write `metrics.json`, by which the run is finished, after digests of all its files into `config.yaml`.

    `record`: the content of `config.yaml`, changed since or not.
    """
    with atomic_file(run / METRICS) as partial:
        partial.write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        digests = files_beside(run, (WEIGHTS, ENCODER, EMBEDDING_RECORD)) | {METRICS: file_digest(partial)}
        write_config(run, {**record, FILES: record[FILES] | digests})


def read_config(run: Path) -> dict[str, Any]:
    """Read `config.yaml`; a folder without one, or of another contract version, is a UserError."""
    path = run / CONFIG
    if not path.is_file():
        raise UserError(f"{run}: is not a run: {CONFIG} is missing. Make one with keyart fit SHARDS {shell_word(run)}.")
    with reading(path, REMEDY):
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    version = record.get("contract_version") if isinstance(record, dict) else None
    if version != CONTRACT_VERSION:
        raise UserError(
            f"{path}: contract version {version}, and this keyart reads version {CONTRACT_VERSION}. {REMEDY}"
        )
    with reading(path, REMEDY):
        for name in FIELDS:
            record[name]
        for name in FIT_FIELDS:
            record["fit"][name]
    return record


def _without_removed_fields(written: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The history encoder's fields without former ones; a UserError where those describe an encoder that no longer exists."""
    matters = ("heads", "time", "gated") if written.get("encoder") == "attention" else ("time",)
    gone = [
        f"{name}={written[name]}" for name in matters if written.get(name, now := REMOVED_HISTORY_FIELDS[name]) != now
    ]
    if gone:
        raise UserError(
            f"{folder / CONFIG}: its history encoder has {', '.join(gone)}, which this keyart no longer has. "
            "Train again with keyart fit, without these fields."
        )
    return {name: value for name, value in written.items() if name not in REMOVED_HISTORY_FIELDS}


def finished_metrics(run: Path, fingerprint: str, restart: bool, console: Console) -> dict[str, Any] | None:
    """The metrics of a finished run; None where there is training to do. UserError where the folder holds anything else.

    `fingerprint`: that of the requested run; with `restart`, a run with another fingerprint is removed.
    """
    if (run / CONFIG).is_file():
        if restart and _fingerprint_of(run) != fingerprint:
            _remove_content(run)
        elif read_config(run)["fingerprint"] != fingerprint:
            raise UserError(
                f"{run}: holds a run of other shards, another config or another --from. "
                "Name a new folder, or remove it."
            )
        elif (run / METRICS).is_file():
            console.print(f"fit: {run} is up to date")
            return read_json(run / METRICS, f"Remove {shell_word(run)} and train again.")
    elif run.is_dir() and any(path.suffix not in (".partial", LOCK_SUFFIX) for path in run.iterdir()):
        raise UserError(f"{run}: holds files, but no {CONFIG}, so keyart did not write it. Name a new or empty folder.")
    return None


def _remove_content(run: Path) -> None:
    """Empty a run's folder, which may be a mount point or a link, but for the lock of the process that writes to it."""
    for path in run.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.suffix != LOCK_SUFFIX:
            path.unlink()


def _fingerprint_of(run: Path) -> str | None:
    """A run's fingerprint; None where this version of keyart cannot read the run."""
    try:
        return read_config(run)["fingerprint"]
    except (UserError, KeyError):
        return None


@dataclass(frozen=True)
class Run:
    """A finished run: the model in evaluation mode and what it was trained with."""

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    model: TwoTower
    vocabularies: Vocabularies

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Load a finished run; an unfinished or damaged one is a UserError."""
        record = read_config(folder)
        if not (folder / METRICS).is_file() or not (folder / WEIGHTS).is_file():
            raise UserError(f"{folder}: the run is not finished. Re-run keyart fit with the same arguments to resume.")
        metrics = read_json(folder / METRICS, REMEDY)
        warn_unverified(folder / CONFIG, record, REMEDY)
        if changed := changed_file(folder, record.get("files", {})):
            raise UserError(f"{folder / changed}: is missing or is not the file of this run. {REMEDY}")
        vocabularies = load_vocabularies(folder / VOCABULARIES, REMEDY)
        with reading(folder / WEIGHTS, REMEDY), safe_open(folder / WEIGHTS, "pt") as file:
            owner = (file.metadata() or {}).get("run", record["fingerprint"])  # older runs do not say whose they are
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if owner != record["fingerprint"]:
            raise UserError(f"{folder / WEIGHTS}: are the weights of another run, {owner}. {REMEDY}")
        state = {name.replace(*RENAMED_WEIGHT): value for name, value in state.items()}
        written = dict(record["fit"]["model"])
        written["history"] = _without_removed_fields(written.get("history", {}), folder)
        parts = {"history": HistoryConfig, "coplay": LowRankEaseConfig, "next_item": NextItemConfig}
        shape = TwoTowerConfig(**{name: part(**written.pop(name, {})) for name, part in parts.items()}, **written)
        with reading(folder / WEIGHTS, REMEDY):
            content = Content(**{name: state[name] for name in Content._fields})
        model = TwoTower(shape, sizes_of(vocabularies, load_context(folder, REMEDY)), content)
        # runs from before own preferences and own taste have none
        for name in ("own_preferences.weight_AP", *OWN_TASTE_BUFFERS):
            state.setdefault(name, model.get_buffer(name))
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:160]
            raise UserError(f"{folder / WEIGHTS}: do not fit the run's own config ({detail}). Train again.") from None
        return cls(folder, record, metrics, model.eval(), vocabularies)
