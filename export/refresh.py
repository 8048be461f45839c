"""`keyart refresh`: what the catalogue gained since the training, put into a bundle without training, and without torch.

In: a bundle and a dataset, of which titles, artworks and images are read. artwork.onnx and title.onnx give what is new its
vectors, by content alone, as the towers told artworks and titles in training that they had never seen. Rows are added behind
those of before: no vector that was there changes, not a bit of it, and so no answer to a request that names nothing new. The
means of a title's artworks are such vectors: a title that gains an artwork keeps its own.

Legend: A new artworks, I new titles, L list length.
"""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
from onnx import ModelProto, numpy_helper
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file, save_file

from datamodules.artworks import content_hashes
from datamodules.atomic import atomic_folder, claimed
from datamodules.check import image_fault, require_valid
from datamodules.contract import ARTWORKS, TITLES, Table, UserError
from datamodules.engines import open_engine, rows_of
from datamodules.progress import progress_bar
from datamodules.relations import typed
from datamodules.vocabulary import Vocabularies, Vocabulary, save_vocabularies
from export.bundle import (
    ABOUT,
    ARTWORK,
    CARD,
    GOLDEN,
    IMAGES,
    POSTERIOR,
    TABLES,
    TITLE,
    VOCABULARIES,
    Bundle,
    seals_of,
)
from export.bundle import TITLES as TITLE_VECTORS
from export.card import card_of
from export.contents import contents_of
from export.example_of_bundle import worst_difference
from export.golden import golden_cases, write_golden
from export.ids import read_graph, with_more_ids, write_graphs
from export.triton import write_triton
from export.variants import remake_variants

OF_TITLES, OF_ARTWORKS = ("play_", "title_", "mean_", "found_by"), ("artwork_",)
"""How the names of tables by title row and by artwork row begin."""
TITLE_COLUMNS = "title_vectors"
"""The one table of titles.onnx, by title column."""
CASES = 24
"""Golden cases of what is new."""
TITLES_AT_ONCE = 1024

Rows = dict[str, np.ndarray]
"""By table, what is put behind it."""


@dataclass(frozen=True)
class Refreshed:
    """What a bundle gained."""

    titles: int
    artworks: int


def refresh(folder: Path, dataset: Path, console: Console) -> Refreshed:
    """Add a dataset's new titles and artworks to a bundle, which is replaced when all is done; UserError where that cannot be.

    What the bundle has already is left as it is; where an old artwork's image is another than it was embedded from, that is
    told, and its vectors stay.
    """
    with claimed(folder.with_name(f".{folder.name}")):
        bundle = Bundle.open(folder)
        for name in (ARTWORK, TITLE, IMAGES):
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder / name}: is not there, and gives what is new its vectors. Export the run again."
                )
        require_valid(dataset, images=False, console=console, tables=(TITLES, ARTWORKS))
        titles, artworks = _read(dataset)
        words = bundle.vocabularies
        _say_changed(bundle, dataset, artworks, console)
        titles, artworks = _new(titles, words["titles"]), _new(artworks, words["artworks"])
        if not titles.num_rows and not artworks.num_rows:
            console.print(f"refresh: {folder} has every title and artwork of {dataset}")
            return Refreshed(0, 0)
        _require_images(dataset, artworks)
        paths = [dataset / image for image in artworks["image"].to_pylist()]
        hashes = json.loads((folder / IMAGES).read_text()) + content_hashes(paths)
        rows = _artwork_rows(bundle, artworks, paths, console)
        rows |= _title_rows(bundle, titles, artworks, rows)
        more = dict(words)
        for name, table in (("titles", titles), ("artworks", artworks)):
            more[name] = words[name].extended(table[f"{name[:-1]}_id"].to_pylist())
        _write(bundle, more, rows, hashes, Refreshed(titles.num_rows, artworks.num_rows), console)
    console.print(
        f"refresh: {folder}: {titles.num_rows:,} titles and {artworks.num_rows:,} artworks more; the rest as it was"
    )
    return Refreshed(titles.num_rows, artworks.num_rows)


def _read(dataset: Path) -> tuple[pa.Table, pa.Table]:
    """Titles and artworks in the contract's types, sorted by id, as vocabularies are."""

    def rows(table: Table) -> pa.Table:
        key = table.columns[0].name
        return rows_of(typed(engine, table.files(dataset), table)).sort_by(key)

    with open_engine() as engine:
        return rows(TITLES), rows(ARTWORKS)


def _new(table: pa.Table, known: Vocabulary) -> pa.Table:
    """The rows whose id, the first column, a vocabulary lacks."""
    return table.filter(pa.array(known.rows(table.column(0)) == 0))


def _say_changed(bundle: Bundle, dataset: Path, artworks: pa.Table, console: Console) -> None:
    """Tell of artworks whose images changed under their ids."""
    old = json.loads((bundle.folder / IMAGES).read_text())
    row_of = {value: row for row, value in enumerate(bundle.vocabularies["artworks"].values)}
    pairs = zip(artworks["artwork_id"].to_pylist(), artworks["image"].to_pylist(), strict=True)
    there = [
        (one, row_of[one], dataset / image) for one, image in pairs if one in row_of and (dataset / image).is_file()
    ]
    found = content_hashes([path for _, _, path in there])
    changed = [one for (one, row, _), digest in zip(there, found, strict=True) if old[row] != digest]
    if changed:
        console.print(
            f"refresh: {len(changed):,} artworks have another image than they were embedded from (first: {changed[0]}). Their "
            "vectors stay as they are: give a new image a new artwork_id."
        )


def _require_images(dataset: Path, artworks: pa.Table) -> None:
    """Every new image decodes, before anything is written."""
    images = artworks["image"].to_pylist()
    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(lambda image: image_fault(dataset, image), images))
    broken = [(one, fault) for one, fault in zip(artworks["artwork_id"].to_pylist(), faults, strict=True) if fault]
    if broken:
        one, (rule, what) = broken[0]
        raise UserError(
            f"{dataset}: {len(broken)} new artworks have images that cannot be used (first: {one}: {rule}, {what}). "
            "Mend them, or leave these artworks out."
        )


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _asked(session: ort.InferenceSession, given: Rows) -> Rows:
    names = [part.name for part in session.get_outputs()]
    return dict(zip(names, (np.asarray(value) for value in session.run(names, given)), strict=True))


def _lists(column: Iterable[Sequence[str | None] | None]) -> np.ndarray:
    """Lists of words, padded with "", (N, L)."""
    lists = [[word or "" for word in words or []] for words in column]
    wide = max(1, *(len(words) for words in lists)) if lists else 1
    return np.array([words + [""] * (wide - len(words)) for words in lists], object).reshape(len(lists), wide)


def _artwork_rows(bundle: Bundle, artworks: pa.Table, paths: list[Path], console: Console) -> Rows:
    """Rows of the tables by artwork."""
    session = _session(bundle.folder / ARTWORK)

    def vectors(path: Path, depicts: list[str] | None) -> Rows:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        return _asked(session, {"image": pixels[None], "depicts": _lists([depicts])})

    names = [part.name for part in session.get_outputs()]
    tables, people = bundle.tables, bundle.vocabularies["people"]
    wide = tables["artwork_people"].shape[1]
    parts: list[Rows] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress_bar(console) as progress:
        task = progress.add_task("refresh: artworks", total=len(paths))
        for found in pool.map(vectors, paths, artworks["depicts"].to_pylist()):
            parts.append(found)
            progress.advance(task)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in names} if parts else {}
    shown = [people.rows(pa.array(words or [], pa.string())) for words in artworks["depicts"].to_pylist()]
    people_AL = np.zeros(
        (len(paths), max([wide, *(np.count_nonzero(row) for row in shown)])), tables["artwork_people"].dtype
    )
    for place, found in enumerate(shown):
        known = found[found > 0]
        people_AL[place, : len(known)] = known
    if parts:
        rows["artwork_people"] = people_AL
        rows["artwork_image"] = rows["artwork_content"][:, : rows["artwork_vector"].shape[1]]
    return rows


def _title_rows(bundle: Bundle, titles: pa.Table, artworks: pa.Table, of_artworks: Rows) -> Rows:
    """Rows of the tables by title; means are over the title's artworks, all of which are new."""
    if not titles.num_rows:
        return {}
    session = _session(bundle.folder / TITLE)
    year = titles["release_year"].cast(pa.float32()).to_numpy(zero_copy_only=False).astype(np.float32)
    genres, cast = (_lists(titles[name].to_pylist()) for name in ("genres", "cast"))
    parts = []
    for begin in range(0, titles.num_rows, TITLES_AT_ONCE):
        some = slice(begin, begin + TITLES_AT_ONCE)
        parts.append(_asked(session, {"genres": genres[some], "cast": cast[some], "release_year": year[some]}))
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    owner = {title: place for place, title in enumerate(titles["title_id"].to_pylist())}
    owned = [(owner[title], row) for row, title in enumerate(artworks["title_id"].to_pylist()) if title in owner]
    means = {"vector": "mean_vector", "content": "mean_content", "bias": "mean_bias", "engaged": "mean_engaged"}
    for part, mean in means.items():
        rows[mean] = _means(of_artworks.get(f"artwork_{part}"), owned, titles.num_rows, bundle, mean)
    rows["play_mean_image"] = rows["mean_content"][:, : rows["mean_vector"].shape[1]]
    return rows


def _means(
    values: np.ndarray | None, owned: list[tuple[int, int]], titles: int, bundle: Bundle, table: str
) -> np.ndarray:
    """Means of artworks' rows by title, zero where a title has none."""
    shape = values.shape[1:] if values is not None else bundle.tables.get(table, np.zeros(1)).shape[1:]
    sums, count = np.zeros((titles, *shape), np.float32), np.zeros(titles, np.float32)
    if values is not None and owned:
        owners, rows = np.array(owned).T
        np.add.at(sums, owners, values[rows])
        np.add.at(count, owners, 1)
    return sums / np.maximum(count, 1).reshape(-1, *[1] * len(shape))


def _write(
    bundle: Bundle, words: Vocabularies, rows: Rows, hashes: list[str], gained: Refreshed, console: Console
) -> None:
    """The bundle with rows behind its tables, in place of the old one."""
    old, record = bundle.folder, json.loads(json.dumps(bundle.about))
    with atomic_folder(old, marker=ABOUT) as folder:
        graphs = {
            name: extended(read_graph(old / name), rows, words, gained)
            for name in record["graphs"]
            if name not in (ARTWORK, TITLE)
        }
        write_graphs(graphs, folder)
        write_triton(folder)
        save_vocabularies(words, folder / VOCABULARIES)
        (folder / IMAGES).write_text(json.dumps(hashes))
        for name in (TABLES, POSTERIOR):
            tables = load_file(old / name)
            save_file(
                {key: _behind(_named(key, name), table, rows, gained) for key, table in tables.items()}, folder / name
            )
        found = load_file(old / TITLE_VECTORS)["title_vector"]
        save_file({"title_vector": _behind("found_by", found, rows, gained)}, folder / TITLE_VECTORS)
        for path in old.iterdir():  # what no new title or artwork changes
            if path.is_file() and not (folder / path.name).exists() and path.name not in (ABOUT, CARD, GOLDEN):
                shutil.copy2(path, folder / path.name)
        _add_cases(bundle, words, folder, record)
        record.setdefault("refreshed", []).append(
            {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "titles": gained.titles,
                "artworks": gained.artworks,
            }
        )
        (folder / ABOUT).write_text(json.dumps(record))  # the golden cases read it
        if "precisions" in record:
            record["precisions"] = remake_variants(folder, record["precisions"], console)
        record["files"] = contents_of(folder)
        (folder / CARD).write_text(card_of(record, words), encoding="utf-8")
        record["sha256"] = seals_of(folder)
        (folder / ABOUT).write_text(json.dumps(record, indent=1))
        difference = worst_difference(folder)
        if not difference <= record["golden"]["bound"]:
            raise UserError(
                f"{old}: refreshed, its golden cases would differ by {difference:.2g}. It is left as it was."
            )


def _named(key: str, file: str) -> str:
    return "artwork_own" if (file, key) == (POSTERIOR, "own") else key


def _add_cases(bundle: Bundle, words: Vocabularies, folder: Path, record: dict[str, Any]) -> None:
    """Golden cases of the new ids behind those of before, which torch answered; these the bundle over rows answers itself."""
    shutil.copy2(bundle.folder / GOLDEN, folder / GOLDEN)
    fresh = dict(words)
    for name in ("titles", "artworks"):
        values = words[name].values[len(bundle.vocabularies[name].values) :]
        fresh[name] = Vocabulary(values, 0) if values else words[name]
    asked = Bundle(folder, record)
    outputs = list(json.loads((folder / GOLDEN).read_text("utf-8").split("\n", 1)[0])["answer"])
    already = sum(1 for _ in (folder / GOLDEN).open(encoding="utf-8"))
    cases = golden_cases(
        lambda request: asked.rank(request, outputs),
        words,
        bundle.history_length,
        drawn=fresh,
        cases=CASES,
        seed=already,
    )
    record["golden"]["cases"] = already + write_golden(cases, folder / GOLDEN, mode="a")


def extended(model: ModelProto, rows: Rows, words: Vocabularies, gained: Refreshed) -> ModelProto:
    """A graph with rows behind its tables and the new ids in its vocabularies."""
    for tensor in model.graph.initializer:
        name = tensor.name
        if name.startswith((*OF_TITLES, *OF_ARTWORKS)):
            values = numpy_helper.to_array(tensor)
            if name == TITLE_COLUMNS:
                values = np.ascontiguousarray(_behind("found_by", values.T, rows, gained).T)
            else:
                values = _behind(name, values, rows, gained)
            tensor.CopyFrom(numpy_helper.from_array(values, name))
        elif name == "count":
            tensor.CopyFrom(numpy_helper.from_array(np.array([len(words["titles"])], np.int64), name))
    with_more_ids(model, words)
    return model


def _behind(name: str, table: np.ndarray, rows: Rows, gained: Refreshed) -> np.ndarray:
    """A table with its new rows. Of what content does not tell, they have what the unknown row has."""
    if name.startswith(OF_ARTWORKS):
        count = gained.artworks
    elif name.startswith(OF_TITLES):
        count = gained.titles
    else:
        return table
    new = rows.get(name)
    if new is None or not count:
        new = np.repeat(table[:1], count, axis=0)
    if new.ndim == 2 and new.shape[1] > table.shape[1]:  # more people than any artwork showed before
        table = np.pad(table, ((0, 0), (0, new.shape[1] - table.shape[1])))
    if new.ndim < table.ndim:  # one number a row, kept as an axis of length 1
        new = new.reshape(len(new), *table.shape[1:])
    return np.concatenate([table, new.astype(table.dtype)])
