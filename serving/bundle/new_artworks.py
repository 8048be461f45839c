"""Encoding of artworks that training never saw by a bundle's artwork tower, without torch: rows of the tables by artwork.

In: a bundle and artworks of a dataset, with their images, vectors of the user's own, or both, as artwork.onnx reads.
Out: the rows, or a UserError that names the first artwork that cannot be used.

Legend: N artworks, L list length, V numbers of a user's vector.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
from rich.console import Console

from datamodules.contract.image_decoding import decode_image, strict_image_decoding
from datamodules.contract.image_files import ImageFinding, image_file, image_remarks, judge_image
from datamodules.shards.artwork_images import content_hashes
from datamodules.shards.artwork_vectors import COLUMN, IMAGE, require_vectors, vector_hashes
from datamodules.shards.catalogue import MAX_PEOPLE
from foundation.errors import UserError
from foundation.machine import available_cores
from foundation.progress import progress_bar
from serving.bundle.bundle import ARTWORK_GRAPH, BUNDLE_FILE, IMAGE_HASHES, TITLE_GRAPH, VECTOR_HASHES, Bundle

TableRows = dict[str, np.ndarray]
"""By table, the rows to append."""
HASHES = {IMAGE: IMAGE_HASHES, COLUMN: VECTOR_HASHES}
"""By source of embeddings, the file of its hashes."""


@dataclass(frozen=True)
class ArtworkTower:
    """A bundle's artwork.onnx."""

    bundle: Bundle

    @cached_property
    def session(self) -> ort.InferenceSession:
        """A session of the graph with one thread."""
        return open_session(self.bundle.folder / ARTWORK_GRAPH)

    @property
    def sources(self) -> list[str]:
        """Its inputs: `image`, `embedding`, the user's own vector, or both."""
        return [part.name for part in self.session.get_inputs() if part.name in HASHES]

    def required_files(self) -> Iterator[str]:
        """The files that a bundle needs to be refreshed."""
        yield from (ARTWORK_GRAPH, TITLE_GRAPH)
        for source in self.sources:
            yield HASHES[source]

    def vectors(self, dataset: Path, artworks: pa.Table) -> np.ndarray:
        """The vectors of new artworks, float32 (N, V); UserError where one is missing, or their length is another model's."""
        path, ids = dataset / "artworks.parquet", artworks["artwork_id"].to_pylist()
        (length,) = (part.shape[1] for part in self.session.get_inputs() if part.name == COLUMN)
        if not len(ids):
            return np.zeros((0, length), np.float32)
        origin = f"{self.bundle.folder} was made from vectors of {length} numbers (see {BUNDLE_FILE})"
        column = artworks[COLUMN]
        if column.null_count == len(column):
            raise UserError(
                f"{path}: {len(ids)} new artworks have no {COLUMN} (first: {ids[0]}), and {origin}. "
                "Add the column, by the model that made those."
            )
        vectors = require_vectors(column, ids, path)
        if vectors.shape[1] != length:
            raise UserError(
                f"{path}: the {COLUMN} of {len(ids)} new artworks has {vectors.shape[1]} numbers (first: {ids[0]}), and "
                f"{origin}. Embed them by the model that made those."
            )
        return vectors

    def hashes(self, dataset: Path, artworks: pa.Table) -> dict[str, list[str]]:
        """By source, a hash of each artwork's image or vector."""
        hashes = {}
        if IMAGE in self.sources:
            hashes[IMAGE] = content_hashes([image_file(dataset, image) for image in artworks[IMAGE].to_pylist()])
        if COLUMN in self.sources:
            hashes[COLUMN] = vector_hashes(self.vectors(dataset, artworks))
        return hashes

    def rows(self, dataset: Path, artworks: pa.Table, console: Console) -> TableRows:
        """Rows of the tables by artwork."""
        paths = [image_file(dataset, image) for image in artworks[IMAGE].to_pylist()] if IMAGE in self.sources else None
        vectors = self.vectors(dataset, artworks) if COLUMN in self.sources else None
        lists = artworks["depicts"].to_pylist()

        def answer(index: int) -> TableRows:
            feeds: TableRows = {"depicts": padded_lists([lists[index]])}
            if paths is not None:
                feeds[IMAGE] = np.asarray(decode_image(paths[index])[0])[None]
            if vectors is not None:
                feeds[COLUMN] = vectors[index : index + 1]
            return run_session(self.session, feeds)

        names = [part.name for part in self.session.get_outputs()]
        parts: list[TableRows] = []
        threads = ThreadPoolExecutor(available_cores())
        with strict_image_decoding(), threads as pool, progress_bar(console) as progress:
            task = progress.add_task("refresh: artworks", total=len(lists))
            for outputs in pool.map(answer, range(len(lists))):
                parts.append(outputs)
                progress.advance(task)
        if not parts:
            return {}
        rows = {name: np.concatenate([part[name] for part in parts]) for name in names}
        rows["artwork_people"] = self._people(lists)
        rows["artwork_image"] = rows["artwork_content"][:, : self.bundle.tables["play_mean_image"].shape[1]]
        return rows

    def _people(self, lists: list[list[str] | None]) -> np.ndarray:
        """Rows of the depicted people that are counted, (N, L), padded with 0."""
        table, people = self.bundle.tables["artwork_people"], self.bundle.vocabularies["people"]
        shown = [people.rows(pa.array(labels or [], pa.string())) for labels in lists]
        known = [rows[rows > 0][:MAX_PEOPLE] for rows in shown]
        people_NL = np.zeros((len(lists), max([table.shape[1], *map(len, known)])), table.dtype)
        for index, rows in enumerate(known):
            people_NL[index, : len(rows)] = rows
        return people_NL


def warn_changed(tower: ArtworkTower, dataset: Path, artworks: pa.Table, console: Console) -> None:
    """Warn of artworks whose images or vectors changed under their ids; UserError where most vectors did, because the new ones
    are then another model's too."""
    row_of = {value: row for row, value in enumerate(tower.bundle.vocabularies["artworks"].values)}
    for source in tower.sources:
        old = json.loads((tower.bundle.folder / HASHES[source]).read_text(encoding="utf-8"))
        known = [artwork in row_of for artwork in artworks["artwork_id"].to_pylist()]
        if source == IMAGE:
            files = [
                image is not None and os.path.isfile(image_file(dataset, image))
                for image in artworks[IMAGE].to_pylist()
            ]
            present = artworks.filter(pa.array(np.logical_and(known, files)))
            digests = content_hashes([image_file(dataset, image) for image in present[IMAGE].to_pylist()])
        else:
            present = artworks.filter(pa.array(np.logical_and(known, artworks[COLUMN].is_valid())))
            ids = present["artwork_id"].to_pylist()
            digests = vector_hashes(require_vectors(present[COLUMN], ids, dataset / "artworks.parquet"))
        pairs = zip(present["artwork_id"].to_pylist(), digests, strict=True)
        changed = [artwork for artwork, digest in pairs if old[row_of[artwork]] != digest]
        if source == COLUMN and len(changed) > len(present) / 2:
            raise UserError(
                f"{dataset}/artworks.parquet: {len(changed):,} of {len(present):,} artworks have another {COLUMN} than "
                f"{tower.bundle.folder} was made from (first: {changed[0]}), as if by another model. Give the vectors of the "
                "model that made those, or train again."
            )
        if changed:
            console.print(
                f"refresh: {len(changed):,} artworks have another {source} than they were embedded from (first: "
                f"{changed[0]}). Their vectors stay as they are: give a new {source} a new artwork_id."
            )


def require_images(dataset: Path, artworks: pa.Table, console: Console) -> None:
    """Raise a UserError where an image is missing or does not decode; say which are read in part."""
    images = artworks[IMAGE].to_pylist()

    def judge(image: str | None) -> ImageFinding:
        return judge_image(dataset, image) if image and image.strip() else ImageFinding("null-image", "null")

    with strict_image_decoding(), ThreadPoolExecutor() as pool:
        findings = list(pool.map(judge, images))
    pairs = zip(artworks["artwork_id"].to_pylist(), findings, strict=True)
    broken = [(artwork_id, finding) for artwork_id, finding in pairs if finding.rule]
    if broken:
        artwork_id, finding = broken[0]
        raise UserError(
            f"{dataset}: {len(broken)} new artworks have images that cannot be used (first: {artwork_id}: {finding.rule}, "
            f"{finding.words}). Mend them, or leave these artworks out."
        )
    for remark in image_remarks(dict(zip(images, findings, strict=True))):
        console.print(f"refresh: {remark}.")


def open_session(path: Path) -> ort.InferenceSession:
    """A session of a graph with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(session: ort.InferenceSession, feeds: TableRows) -> TableRows:
    """All outputs of a graph by name."""
    names = [part.name for part in session.get_outputs()]
    return dict(zip(names, (np.asarray(value) for value in session.run(names, feeds)), strict=True))


def padded_lists(column: Iterable[Sequence[str | None] | None]) -> np.ndarray:
    """Lists of words, padded with "", (N, L)."""
    lists = [[word or "" for word in labels or []] for labels in column]
    wide = max(1, *(len(labels) for labels in lists)) if lists else 1
    return np.array([labels + [""] * (wide - len(labels)) for labels in lists], object).reshape(len(lists), wide)
