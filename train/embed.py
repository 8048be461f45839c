"""`keyart embed`: artwork images -> an embedding per artwork, kept in the shards.

The encoder's weights come from a local file, from torchvision's hub, or are trained here on the catalogue: to tell a
title's genres and whom and what an artwork depicts. Which of the three happened is printed and written down; random
weights are never used. Embeddings are cached by the images' bytes: a second call encodes new images only, with the
encoder it has.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.shards.artwork_images import (
    FROM_FILE,
    FROM_HUB,
    FROM_RUN,
    HEIGHT,
    TRAINED_HERE,
    WIDTH,
    content_hashes,
    image_paths,
    load_images,
)
from datamodules.shards.catalogue import Catalogue
from datamodules.shards.shard import EMBEDDING, Shards
from foundation.atomic import atomic_folder
from foundation.errors import UserError
from foundation.fingerprint import fingerprint
from foundation.progress import progress_bar
from models.image_encoder import ImageEncoder, ImageEncoderConfig, PixelStatistics, Projection, WholeStatistics
from train.run import CONFIG, read_config
from train.schedule import warmup_cosine

EMBEDDING_RECORD, ENCODER, PIXELS, PIXEL_ROW = "embedding.json", "encoder.safetensors", "pixels.npy", "pixel_row.npy"
CHUNK_SIZE = 256
EMBEDDING_VERSION = 2
"""Raised when the embedding of the same images by the same weights changes."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """How artworks are embedded."""

    encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    """The backbone and the embedding's width."""
    weights: str = "train"
    """`train`: train the backbone here on the catalogue; `hub`: torchvision's pretrained weights, downloaded or from its
    cache; else a file of a torchvision state dict (.pth or .safetensors), or a run that trained an encoder of its own."""
    pixels: bool = False
    """Keep the images' pixels beside the embedding, 41 KB each: `keyart fit --finetune.learning_rate` needs them."""
    views: int = 16_000
    """Images the training here looks at, all passes together."""
    batch: int = 64
    """Images per training step."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW in the training here."""
    seed: int = 0
    """Of the training here."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.views < self.batch or self.batch < 2:
            raise UserError(
                f"views={self.views}, batch={self.batch}: a batch is at least 2, and views at least a batch."
            )
        if not 0 < self.learning_rate < 1:
            raise UserError(f"learning_rate={self.learning_rate}: must lie in (0, 1).")


def embed(
    dataset: Path, shards: Path, config: EmbedConfig | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Embed every artwork of the shards; returns the record written to `SHARDS/embedding/embedding.json`.

    Beside it: `embedding.npy`, float32 (A, E) by artwork row, row 0 zero, and `encoder.safetensors`, with which a new
    artwork gets its place among these; where asked for, `pixels.npy`, uint8 (P, 3, 144, 96), each distinct image once, and
    `pixel_row.npy`, int32 (A,), the row of an artwork's image in it, -1 for row 0.
    """
    config, console = config or EmbedConfig(), console or Console(stderr=True)
    opened = Shards.open(shards)
    paths = image_paths(dataset, opened.vocabularies["artworks"])
    hashes = content_hashes(paths)
    encoder_key = fingerprint(replace(config, pixels=False), _weights_fingerprint(config), EMBEDDING_VERSION)
    target = shards / EMBEDDING
    old = _finished(target, encoder_key)
    order = fingerprint(opened.vocabularies["artworks"].values)
    has_pixels = (target / PIXELS).is_file() or not config.pixels
    if old is not None and old["images"] == hashes and old["artworks"] == order and has_pixels:
        console.print(f"embed: {len(paths)} artworks are up to date in {target}")
        return old
    row_of_hash = {digest: row for row, digest in enumerate(old["images"], start=1)} if old is not None else {}
    first_of = {digest: index for index, digest in reversed(list(enumerate(hashes)))}
    to_encode = [index for digest, index in first_of.items() if digest not in row_of_hash]

    if old is not None:
        encoder, projection, origin = *load_encoder(target, config.encoder), str(old["weights"])
    elif (Path(config.weights) / ENCODER).is_file():
        encoder, projection = load_encoder(Path(config.weights), config.encoder)
        origin = f"{config.encoder.backbone} {FROM_RUN} {config.weights} ({_origin_of(Path(config.weights))})"
    else:
        encoder, origin = _weighted_encoder(config, paths, opened.catalogue, console)
        projection = None
    blocks = _encode(encoder, [paths[index] for index in to_encode], console)
    if projection is None:
        statistics = [PixelStatistics.features, WholeStatistics.features]
        components = statistics + [config.encoder.stage_width] * (len(blocks) - len(statistics))
        projection = Projection.fit(blocks, components)
    vectors = projection(blocks) if to_encode else None
    old_embedding = np.load(target / "embedding.npy") if old is not None else None
    index_of = {hashes[index]: i for i, index in enumerate(to_encode)}
    table = np.zeros((len(paths) + 1, vectors.shape[1] if vectors is not None else old_embedding.shape[1]), np.float32)  # type: ignore[union-attr]
    for row, digest in enumerate(hashes, start=1):
        table[row] = vectors[index_of[digest]] if digest in index_of else old_embedding[row_of_hash[digest]]  # type: ignore[index]

    record = {
        "fingerprint": fingerprint(encoder_key, hashes),
        "encoder": encoder_key,
        "weights": origin,
        "config": asdict(config),
        "width": table.shape[1],
        "encoded": len(to_encode),
        "artworks": order,
        "images": hashes,
    }
    with atomic_folder(target, marker=EMBEDDING_RECORD) as folder:
        np.save(folder / "embedding.npy", table)
        if config.pixels:
            _write_pixels(folder, paths, hashes, console)
        state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
        state |= {f"projection.{k}": v for k, v in projection.state_dict().items()}
        save_file({k: v.contiguous() for k, v in state.items()}, folder / ENCODER)
        (folder / EMBEDDING_RECORD).write_text(json.dumps(record))
    reused = len(hashes) - len(to_encode)
    console.print(
        f"embed: {len(to_encode)} images encoded, {reused} reused; {table.shape[1]} features each. Encoder: {origin}"
    )
    return record


def load_embedding(shards: Path) -> tuple[Tensor, dict[str, Any]]:
    """The embedding, float32 (A, E), and its record; a UserError where the shards have none."""
    record = _finished(shards / EMBEDDING, None)
    if record is None:
        raise UserError(f"{shards}: artworks are not embedded yet. Run keyart embed DATASET {shards}.")
    if record["artworks"] != fingerprint(Shards.open(shards).vocabularies["artworks"].values):
        raise UserError(f"{shards}: the artworks changed since they were embedded. Run keyart embed DATASET {shards}.")
    return torch.from_numpy(np.load(shards / EMBEDDING / "embedding.npy")), record


def encoder_fingerprint(shards: Path) -> str:
    """Identifies the encoder of the shards' embedding, by its weights and its projection."""
    path = shards / EMBEDDING / ENCODER
    if not path.is_file():
        raise UserError(f"{path}: is not there. Remove {path.parent} and run keyart embed DATASET {shards}.")
    return content_hashes([path])[0]


def _finished(target: Path, encoder_key: str | None) -> dict[str, Any] | None:
    """The record of an embedding that is there and of the wanted encoder."""
    if not (target / EMBEDDING_RECORD).is_file():
        return None
    record = json.loads((target / EMBEDDING_RECORD).read_text())
    return record if encoder_key in (None, record["encoder"]) else None


def _write_pixels(folder: Path, paths: list[Path], hashes: list[str], console: Console) -> None:
    """Each distinct image once, a bounded number in memory at once."""
    distinct = list(dict.fromkeys(hashes))
    row_of = {digest: row for row, digest in enumerate(distinct)}
    path_of = dict(zip(hashes, paths, strict=True))
    np.save(folder / PIXEL_ROW, np.array([-1, *(row_of[digest] for digest in hashes)], np.int32))
    shape = (len(distinct), 3, HEIGHT, WIDTH)
    pixels = np.lib.format.open_memmap(folder / PIXELS, "w+", np.uint8, shape)
    with progress_bar(console) as progress:
        task = progress.add_task("keep pixels", total=len(distinct))
        for begin in range(0, len(distinct), CHUNK_SIZE):
            chunk = distinct[begin : begin + CHUNK_SIZE]
            pixels[begin : begin + len(chunk)] = load_images([path_of[digest] for digest in chunk])
            progress.advance(task, len(chunk))
    pixels.flush()


def load_encoder(folder: Path, config: ImageEncoderConfig | None = None) -> tuple[ImageEncoder, Projection]:
    """The encoder and the projection of a folder: of an embedding, or of a run that trained one.

    `config`: its shape; default: what the embedding's own record says. A UserError where there is none, or the weights do
    not fit it.
    """
    for name in (ENCODER, EMBEDDING_RECORD) if config is None else (ENCODER,):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name}: is not there: made by an older keyart. Copy {ENCODER} and {EMBEDDING_RECORD} "
                f"there from the shards' {EMBEDDING} folder, or train again."
            )
    state = load_file(folder / ENCODER)
    if config is None:
        config = ImageEncoderConfig(**json.loads((folder / EMBEDDING_RECORD).read_text())["config"]["encoder"])
    encoder = ImageEncoder(config)
    weights = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"{folder / ENCODER}: does not fit {config.backbone} ({detail}). Name its backbone.") from None
    parts = {k.removeprefix("projection."): v for k, v in state.items() if k.startswith("projection.")}
    turns = [parts[f"turn_{i}"] for i in range(len(parts) // 2)]
    projection = Projection([t.shape[0] for t in turns], [t.shape[1] for t in turns])
    projection.load_state_dict(parts)
    return encoder.eval(), projection


def _origin_of(folder: Path) -> str:
    """Where the encoder of an embedding's or a run's folder came from, in words."""
    if (folder / CONFIG).is_file():  # a run, which may have trained it further
        return read_config(folder)["image_encoder"]
    return (
        json.loads((folder / EMBEDDING_RECORD).read_text())["weights"]
        if (folder / EMBEDDING_RECORD).is_file()
        else "origin not recorded"
    )


def _weights_fingerprint(config: EmbedConfig) -> str:
    """Of the weights file, where the weights are a file."""
    if config.weights in ("train", "hub"):
        return config.weights
    path = Path(config.weights)
    if path.is_dir():
        path = path / ENCODER
    if not path.is_file():
        raise UserError(
            f"weights={config.weights}: no such file. Give a torchvision state dict, a run that has an {ENCODER}, `hub` or "
            "`train`."
        )
    return content_hashes([path])[0]


def _weighted_encoder(
    config: EmbedConfig, paths: list[Path], catalogue: Catalogue, console: Console
) -> tuple[ImageEncoder, str]:
    """An encoder with real weights, and where they came from, in words."""
    torch.manual_seed(config.seed)
    encoder = ImageEncoder(config.encoder)
    name = config.encoder.backbone
    if config.weights == "train":
        return encoder, _train(encoder, config, paths, catalogue, console)
    if config.weights == "hub":
        try:
            state = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=True, check_hash=True)  # type: ignore[attr-defined]
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"weights=hub: torchvision's weights of {name} cannot be had ({error}). Give a file, or weights=train."
            ) from None
        origin = f"{name}, {FROM_HUB}"
    else:
        path = Path(config.weights)
        try:
            state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        except Exception as error:  # every reader has its own exceptions; the file is a user's
            raise UserError(f"{path}: is no readable state dict ({error}). Give a .pth or .safetensors file.") from None
        origin = f"{name}, {FROM_FILE} {path.name}"
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    try:
        encoder.backbone.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(
            f"weights={config.weights}: do not fit {name} ({detail}). Name the backbone they are of."
        ) from None
    return encoder.eval(), origin


def _labels(catalogue: Catalogue) -> Tensor:
    """What the training here learns to tell, float32 (A - 1, labels): the title's genres, depicted moods and people."""

    def hot(rows_AL: np.ndarray) -> np.ndarray:
        table = np.zeros((len(rows_AL), int(rows_AL.max(initial=0)) + 1), np.float32)
        np.put_along_axis(table, rows_AL.astype(np.int64), 1.0, axis=1)
        return table[:, 1:]

    owner = catalogue.artwork_title
    label_groups = [hot(catalogue.title_genres[owner]), hot(catalogue.artwork_genres), hot(catalogue.artwork_people)]
    labels = np.concatenate(label_groups, axis=1)[1:]
    share = labels.mean(0)
    return torch.from_numpy(labels[:, (share > 0.002) & (share < 0.998)])


def _train(
    encoder: ImageEncoder, config: EmbedConfig, paths: list[Path], catalogue: Catalogue, console: Console
) -> str:
    """Train the backbone on the catalogue's own words; returns what happened, with the loss against a constant's."""
    labels = _labels(catalogue)
    if labels.shape[1] == 0:
        raise UserError(
            "weights=train: the catalogue has neither genres nor depicts to learn from. Give a weights file, or `hub`."
        )
    rng = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(paths), generator=rng)[: config.views]
    pixels, labels = torch.from_numpy(load_images([paths[i] for i in chosen.tolist()])), labels[chosen]
    head = nn.Linear(encoder.features, labels.shape[1])
    prior = labels.mean(0).clamp(1e-3, 1 - 1e-3)
    with torch.no_grad():
        head.bias.copy_(torch.logit(prior))
        head.weight.zero_()
    steps = config.views // config.batch
    parameters = [*encoder.backbone.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(warmup_cosine, total=steps, warmup=0.1))
    encoder.train()
    losses: list[float] = []
    order = torch.randperm(len(pixels), generator=rng)
    with progress_bar(console) as progress:
        task = progress.add_task("train the image encoder", total=steps)
        for step in range(steps):
            indices = torch.arange(step * config.batch, (step + 1) * config.batch) % len(pixels)
            batch = order[indices]
            maps = encoder.stages(_augmented(pixels[batch].float() / 255, rng))
            loss = F.binary_cross_entropy_with_logits(head(maps[-1].mean((2, 3))), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            progress.update(task, advance=1, description=f"train the image encoder, loss {np.mean(losses[-20:]):.4f}")
    encoder.eval()
    constant = F.binary_cross_entropy(prior.expand_as(labels), labels).item()
    last = float(np.mean(losses[-max(1, steps // 10) :]))
    return (
        f"{config.encoder.backbone}, {TRAINED_HERE} {len(pixels)} images and {labels.shape[1]} words of the catalogue, "
        f"{steps * config.batch} views (loss {last:.4f}, a constant's {constant:.4f})"
    )


def _augmented(images_nCHW: Tensor, rng: torch.Generator) -> Tensor:
    """Mirrored, shifted and scaled, lighter and darker versions, so that few images teach more."""
    n = len(images_nCHW)
    scale, mirror = 1 - 0.25 * torch.rand(n, generator=rng), 1 - 2.0 * (torch.rand(n, generator=rng) < 0.5)
    shift = (torch.rand(n, 2, generator=rng) * 2 - 1) * (1 - scale)[:, None]
    turn = torch.zeros(n, 2, 3)
    turn[:, 0, 0], turn[:, 1, 1], turn[:, :, 2] = scale * mirror, scale, shift
    grid = F.affine_grid(turn, list(images_nCHW.shape), align_corners=False)
    light = 0.8 + 0.4 * torch.rand(n, 1, 1, 1, generator=rng)
    return (F.grid_sample(images_nCHW, grid, padding_mode="border", align_corners=False) * light).clamp(0, 1)


@torch.no_grad()
def _encode(encoder: ImageEncoder, paths: list[Path], console: Console) -> list[Tensor]:
    """Blocks of features of image files, a bounded number in memory at once."""
    parts: list[list[Tensor]] = []
    with progress_bar(console) as progress:
        task = progress.add_task("encode images", total=len(paths))
        for begin in range(0, len(paths), CHUNK_SIZE):
            chunk = paths[begin : begin + CHUNK_SIZE]
            parts.append(encoder(torch.from_numpy(load_images(chunk))))
            progress.advance(task, len(chunk))
    join: Callable[..., list[Tensor]] = lambda *blocks: [torch.cat(b) for b in zip(*blocks, strict=True)]  # noqa: E731
    return join(*parts) if parts else []
