"""`keyart embed`: artworks -> one embedding each, stored in the shards.

An embedding is computed from the artwork's image, by keyart's encoder, from a vector of the user's own, the column `embedding`
of artworks.parquet, or from both, each standardised on its own and concatenated. For the encoder's weights see
`train.encoder_weights`; random weights are never used. Encoded images are cached by their bytes: a second call encodes new
images only, with the encoder it has. Sources and weights are printed and recorded.

Legend: A artworks and the unknown row 0, E embedding, V numbers of a user's vector.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules.shards.artwork_images import HEIGHT, WIDTH, content_hashes, image_paths, load_images
from datamodules.shards.artwork_vectors import (
    COLUMN,
    IMAGE,
    filled_columns,
    read_vectors,
    vector_hashes,
)
from datamodules.shards.catalogue import Catalogue
from datamodules.shards.embedding_origin import FROM_RUN, GIVEN, EmbeddingOrigin
from datamodules.shards.shard import EMBEDDING, Shards
from foundation.atomic import atomic_folder, claimed_output
from foundation.errors import UserError
from foundation.fingerprint import fingerprint
from foundation.progress import progress_bar
from foundation.shell import shell_word
from foundation.stored import changed_file, files_beside, read_json, reading, warn_unverified
from models.image_encoder import ImageEncoder, ImageEncoderConfig, Projection
from train.embed_config import EMBEDDING_RECORD, ENCODER, PIXEL_ROW, PIXELS, VECTORS, EmbedConfig
from train.encoder_weights import make_encoder, weighted_encoder, weights_fingerprint, with_weights_named
from train.run import CONFIG, read_config

CHUNK_SIZE, ENCODED_AT_ONCE = 256, 16
"""Images that are read at a time, and of those that are encoded: the maps of few stay in a processor's cache, which takes half
the time."""
LEAST_SPREAD = 1e-37
"""The least standard deviation of a number of a user's vectors: what is smaller has no inverse in 32 bits."""
FIELDS = ("artworks", "images", "encoder", "fingerprint", "width", "config")
"""What every record has."""
MADE_AGAIN = "Remove its folder and run the command that wrote it again: keyart embed for shards, keyart fit for a run."
EMBEDDING_VERSION = 4
"""Raised when the embedding of the same images by the same weights changes."""


def embed(
    dataset: Path, shards: Path, config: EmbedConfig | None = None, console: Console | None = None
) -> dict[str, Any]:
    """Embed every artwork of the shards; returns the record written to `SHARDS/embedding/embedding.json`.

    Beside it: `embedding.npy`, float32 (A, E) by artwork row, row 0 zero, and `encoder.safetensors`, with which a new
    artwork can be embedded alike; with `pixels`, also `pixels.npy`, uint8 (P, 3, 144, 96), each distinct image once, and
    `pixel_row.npy`, int32 (A,), the row of an artwork's image in it, -1 for row 0.
    """
    config, console = with_weights_named(config or EmbedConfig()), console or Console(stderr=True)
    opened, target = Shards.open(shards), shards / EMBEDDING
    if target.is_dir() and any(target.iterdir()) and not (target / EMBEDDING_RECORD).is_file():
        raise UserError(f"{target}: holds files, but no {EMBEDDING_RECORD}. Remove it, and embed again.")
    with claimed_output(target, EMBEDDING_RECORD, dataset=dataset):
        return _embed(dataset, opened, target, config, console)


def _embed(dataset: Path, opened: Shards, target: Path, config: EmbedConfig, console: Console) -> dict[str, Any]:
    """Embed what `target` does not have yet; returns its record."""
    artworks = opened.vocabularies["artworks"]
    sources = _sources(dataset, config, console)
    paths = image_paths(dataset, artworks) if IMAGE in sources else []
    vectors = _vectors(dataset, artworks.values, console) if COLUMN in sources else None
    made_of = {
        "artworks": fingerprint(artworks.values),
        "encoder": _encoder_key(config) if paths else None,
        "images": content_hashes(paths),
        "vectors": [] if vectors is None else vector_hashes(vectors),
        "vector_width": 0 if vectors is None else config.vector_width,
    }
    old = _kept(target, console)
    has_pixels = (target / PIXELS).is_file() or not config.pixels
    if old is not None and has_pixels and {name: old[name] for name in made_of} == made_of:
        warn_unverified(target / EMBEDDING_RECORD, old, MADE_AGAIN, console)
        console.print(f"embed: {len(artworks.values)} artworks are up to date in {target}")
        return old
    images, projection = None, None
    tables: list[np.ndarray] = []
    state: dict[str, Tensor] = {}
    if paths:
        before = (target, old) if old is not None and old["encoder"] == made_of["encoder"] else None
        images = _embed_images(config, paths, made_of["images"], opened.catalogue, before, console)
        tables.append(images.table)
        state |= {f"encoder.{k}": v for k, v in images.encoder.state_dict().items()}
        state |= {f"projection.{k}": v for k, v in images.projection.state_dict().items()}
    if vectors is not None:
        continues = old is not None and old["vector_width"] == config.vector_width
        if old is not None and continues and set(old["vectors"]) <= set(made_of["vectors"]):
            projection = load_vector_projection(target)
        projection = projection or Projection.fit([torch.from_numpy(vectors)], [config.vector_width], LEAST_SPREAD)
        tables.append(projection([torch.from_numpy(vectors)]).numpy())
        state |= {f"vectors.{k}": v for k, v in projection.state_dict().items()}
    for name, part in zip(sources, tables, strict=True):
        if len(part) > 1 and not part.any():
            raise UserError(
                f"{dataset}/artworks.parquet: {name} is the same for all {len(part):,} artworks, and says nothing of them. "
                "Export each artwork's own."
            )
    table = np.concatenate(tables, axis=1)
    record = _new_record(config, made_of, images, vectors, projection) | {"width": table.shape[1]}
    record["blocks"] = [
        width for p in (images and images.projection, projection) if p is not None for width in p.widths()
    ]
    with atomic_folder(target, marker=EMBEDDING_RECORD) as folder:
        np.save(folder / VECTORS, np.concatenate([np.zeros_like(table[:1]), table]))
        if config.pixels:
            _write_pixels(folder, paths, made_of["images"], console)
        save_file({k: v.contiguous() for k, v in state.items()}, folder / ENCODER)
        record["files"] = files_beside(folder, (VECTORS, ENCODER, PIXELS, PIXEL_ROW))
        (folder / EMBEDDING_RECORD).write_text(json.dumps(record), encoding="utf-8")
    encoded = "" if images is None else f"{images.encoded} images encoded, {len(paths) - images.encoded} reused; "
    console.print(f"embed: {encoded}{table.shape[1]} features each. Encoder: {describe_origin(record)}")
    return record


def _kept(target: Path, console: Console) -> dict[str, Any] | None:
    """The record of an embedding that is whole; None, with a line on the console, where a file of it was damaged."""
    try:
        record = embedding_record(target)
        changed = None if record is None else changed_file(target, record.get("files", {}))
    except UserError:
        record, changed = None, EMBEDDING_RECORD
    if changed:
        console.print(f"embed: {target / changed} is missing or damaged: all artworks are embedded again", markup=False)
        return None
    return record


def _sources(dataset: Path, config: EmbedConfig, console: Console) -> tuple[str, ...]:
    """Which columns of artworks.parquet are embedded; a UserError where a requested one is missing."""
    filled = filled_columns(dataset)
    if config.sources == "auto":
        chosen = (COLUMN,) if COLUMN in filled else (IMAGE,)
        if filled == {IMAGE, COLUMN}:
            console.print(
                "embed: artworks.parquet has image and embedding, and embedding is used: --sources image and "
                "--sources both choose otherwise"
            )
    else:
        chosen = (IMAGE, COLUMN) if config.sources == "both" else (config.sources,)
    for name in chosen:
        if name not in filled:
            others = f", or --sources {min(filled)}" if filled else ""
            raise UserError(
                f"{dataset}/artworks.parquet: the column {name}, which sources={config.sources} embeds, is missing. "
                f"Add the column{others}."
            )
    if config.pixels and IMAGE not in chosen:
        raise UserError(
            "pixels=true: no images are read where vectors are used. Add --sources both or --sources image."
        )
    return chosen


def _vectors(dataset: Path, artworks: list[str], console: Console) -> np.ndarray:
    """The user's vectors, float32 (A - 1, V); a cast from another type is reported on the console."""
    vectors, column_type = read_vectors(dataset, artworks)
    if "double" in column_type:
        console.print(f"embed: the embeddings of artworks.parquet are {column_type}, and are read as float of 32 bits")
    return vectors


@dataclass(frozen=True)
class _EmbeddedImages:
    """Embeddings of images and the encoder that computed them."""

    table: np.ndarray
    """float32 (A - 1, E), E the length of the images' part, by artwork row from 1."""
    encoder: ImageEncoder
    projection: Projection
    origin: str
    """The origin of the encoder's weights, in words."""
    encoded: int
    """How many images were encoded because the cache lacked them."""


def _embed_images(
    config: EmbedConfig,
    paths: list[Path],
    hashes: list[str],
    catalogue: Catalogue,
    before: tuple[Path, dict[str, Any]] | None,
    console: Console,
) -> _EmbeddedImages:
    """Embed the images that are not cached. `before`: folder and record of an earlier embedding by the same encoder, or None."""
    row_of_hash, old_table = {}, np.zeros((0, 0), np.float32)
    if before is not None:
        folder, old = before
        row_of_hash = {digest: row for row, digest in enumerate(old["images"], start=1)}
        with reading(folder / VECTORS, MADE_AGAIN):
            old_table = np.load(folder / VECTORS)[:, : old["image_width"]]
    first_of = {digest: index for index, digest in reversed(list(enumerate(hashes)))}
    to_encode = [index for digest, index in first_of.items() if digest not in row_of_hash]
    projection = None
    if before is not None:
        encoder, projection = load_encoder(before[0], config.encoder)
        origin = str(before[1]["weights"])
    elif (Path(config.weights) / ENCODER).is_file():
        encoder, projection = load_encoder(Path(config.weights), config.encoder)
        eye = "random features" if encoder.backbone is None else config.encoder.backbone
        origin = f"{eye} {FROM_RUN} {config.weights} ({_origin_of(Path(config.weights))})"
    else:
        encoder, origin = weighted_encoder(config, paths, catalogue, console)
    blocks = _encode(encoder, [paths[index] for index in to_encode], console)
    if projection is None:
        levels = len(blocks) - len(encoder.components(0))
        projection = Projection.fit(blocks, encoder.components(levels))
    vectors = projection(blocks).numpy() if to_encode else old_table[:0]
    index_of = {hashes[index]: i for i, index in enumerate(to_encode)}
    table = np.stack(
        [vectors[index_of[digest]] if digest in index_of else old_table[row_of_hash[digest]] for digest in hashes]
    )
    return _EmbeddedImages(table, encoder, projection, origin, len(to_encode))


def _new_record(
    config: EmbedConfig,
    made_of: dict[str, Any],
    images: _EmbeddedImages | None,
    vectors: np.ndarray | None,
    projection: Projection | None,
) -> dict[str, Any]:
    """The record of an embedding; its fingerprint changes with any number of the embedding."""
    parts = [] if images is None else [made_of["encoder"], made_of["images"]]
    if vectors is not None and projection is not None:
        parts += [
            made_of["vectors"],
            made_of["vector_width"],
            vector_hashes(projection.state_dict()["centre_0"][None].numpy()),
        ]
    return made_of | {
        "fingerprint": fingerprint(*parts),
        "weights": None if images is None else images.origin,
        "config": asdict(config),
        "image_width": 0 if images is None else images.table.shape[1],
        "vector_length": 0 if vectors is None else vectors.shape[1],
        "encoded": 0 if images is None else images.encoded,
    }


def _encoder_key(config: EmbedConfig) -> str:
    """A fingerprint of the image encoder that a config describes, by its config and its weights."""
    others = ("sources", "vector_width")
    options = {name: value for name, value in asdict(replace(config, pixels=False)).items() if name not in others}
    return fingerprint(options, weights_fingerprint(config), EMBEDDING_VERSION)


def describe_origin(record: dict[str, Any]) -> str:
    """The sources of a record's embedding in words: an image encoder, a user's vectors, or both."""
    given = f"vectors of {record['vector_length']} numbers {GIVEN}"
    if not record["vector_length"]:
        return str(record["weights"])
    return f"none, {given}" if record["weights"] is None else f"{record['weights']}; beside {given}"


def describe_sources(record: dict[str, Any]) -> EmbeddingOrigin:
    """The part of a record that a run and a bundle keep: sources, widths, and a checksum of the user's vectors."""
    sources = [name for name, width in ((IMAGE, "image_width"), (COLUMN, "vector_length")) if record[width]]
    origin: EmbeddingOrigin = {"sources": sources, "width": record["width"]}
    if COLUMN in sources:
        origin["vector_length"] = record["vector_length"]
        origin["vectors"] = fingerprint(record["vectors"])
    return origin


def load_embedding(shards: Path) -> tuple[Tensor, dict[str, Any]]:
    """The embedding, float32 (A, E), and its record; a UserError where the shards have none."""
    path, remedy = shards / EMBEDDING / VECTORS, f"Run keyart embed DATASET {shell_word(shards)}."
    record = embedding_record(shards / EMBEDDING)
    if record is None:
        raise UserError(f"{shards}: artworks are not embedded yet. {remedy}")
    if record["artworks"] != fingerprint(Shards.open(shards).vocabularies["artworks"].values):
        raise UserError(f"{shards}: the artworks changed since they were embedded. {remedy}")
    if changed := changed_file(path.parent, record.get("files", {})):
        raise UserError(f"{path.parent / changed}: is missing or is not the file that keyart embed wrote. {remedy}")
    with reading(path, remedy):
        return torch.from_numpy(np.load(path)), record


def encoder_fingerprint(shards: Path) -> str:
    """Identifies the encoder of the shards' embedding, by its weights and its projection."""
    path = shards / EMBEDDING / ENCODER
    if not path.is_file():
        raise UserError(
            f"{path}: is missing. Remove {shell_word(path.parent)} and run keyart embed DATASET {shell_word(shards)}."
        )
    return content_hashes([path])[0]


def embedding_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder's or a run's embedding, None if it has none; records older than `embedding` vectors are completed as
    embeddings of images alone."""
    if not (folder / EMBEDDING_RECORD).is_file():
        return None
    record = read_json(folder / EMBEDDING_RECORD, MADE_AGAIN, FIELDS)
    return {"vectors": [], "vector_width": 0, "vector_length": 0, "image_width": record["width"]} | record


def _write_pixels(folder: Path, paths: list[Path], hashes: list[str], console: Console) -> None:
    """Write `pixels.npy` and `pixel_row.npy`, with a bounded number of images in memory at once."""
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
    """The image encoder and the projection in a folder, an embedding's or that of a run that trained an encoder.

    `config`: the encoder's shape; None: that of the embedding's own record. A UserError where the folder has no image encoder,
    or the weights do not fit the shape.
    """
    for name in (ENCODER, EMBEDDING_RECORD) if config is None else (ENCODER,):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name}: is missing: made by an older keyart. Copy {ENCODER} and {EMBEDDING_RECORD} "
                f"from the shards' {EMBEDDING} folder to {shell_word(folder)}, or train again."
            )
    with reading(folder / ENCODER, MADE_AGAIN):
        state = load_file(folder / ENCODER)
    if config is None:
        with reading(folder / EMBEDDING_RECORD, MADE_AGAIN):
            record = read_json(folder / EMBEDDING_RECORD, MADE_AGAIN)
            config = ImageEncoderConfig(**record["config"]["encoder"])
    projection = _projection(state, "projection.")
    if projection is None:
        raise UserError(f"{folder / ENCODER}: holds no image encoder: artworks were embedded by vectors {GIVEN}.")
    encoder = make_encoder(config)
    weights = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"{folder / ENCODER}: does not fit {config.backbone} ({detail}). Name its backbone.") from None
    return encoder.eval(), projection


def load_vector_projection(folder: Path) -> Projection | None:
    """The projection of the user's vectors, from an embedding's folder or a run; None where only images are embedded."""
    with reading(folder / ENCODER, MADE_AGAIN):
        return _projection(load_file(folder / ENCODER), "vectors.")


def _projection(state: dict[str, Tensor], prefix: str) -> Projection | None:
    """The projection whose tensors have the prefix; None where there are none."""
    parts = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    turns = [parts[f"turn_{i}"] for i in range(len(parts) // 2)]
    if not turns:
        return None
    projection = Projection([t.shape[0] for t in turns], [t.shape[1] for t in turns])
    projection.load_state_dict(parts)
    return projection


def _origin_of(folder: Path) -> str:
    """The origin of the encoder in an embedding's or a run's folder, in words."""
    if (folder / CONFIG).is_file():  # a run, which may have trained it further
        return read_config(folder)["image_encoder"].partition("; beside ")[0]
    record = embedding_record(folder)
    return "origin not recorded" if record is None else str(record["weights"])


@torch.no_grad()
def _encode(encoder: ImageEncoder, paths: list[Path], console: Console) -> list[Tensor]:
    """Blocks of features of image files, a bounded number in memory at once."""
    parts: list[list[Tensor]] = []
    with progress_bar(console) as progress:
        task = progress.add_task("encode images", total=len(paths))
        for begin in range(0, len(paths), CHUNK_SIZE):
            chunk = paths[begin : begin + CHUNK_SIZE]
            images = torch.from_numpy(load_images(chunk))
            parts += [encoder(few) for few in images.split(ENCODED_AT_ONCE)]
            progress.advance(task, len(chunk))
    join: Callable[..., list[Tensor]] = lambda *blocks: [torch.cat(b) for b in zip(*blocks, strict=True)]  # noqa: E731
    return join(*parts) if parts else []
