"""`keyart refresh`: what the catalogue gained since the training, put into a bundle without training, and without torch.

In: a bundle and a dataset, of which titles, artworks and images are read. artwork.onnx and title.onnx give what is new its
vectors, by content alone, as the towers told artworks and titles in training that they had never seen. Rows are added behind
those of before: no vector that was there changes, not a bit of it, and so no answer to a request that names nothing new. The
means of a title's artworks are such vectors: a title that gains an artwork keeps its own; one that had no artwork, and so no mean,
is given that of its first ones.

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
from datamodules.atomic import atomic_folder
from datamodules.catalogue import MOST_PEOPLE
from datamodules.check import image_fault, images_judged, require_valid
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
from export.golden import case_of, golden_cases, write_golden
from export.ids import OF_ARTWORKS, OF_TITLES, read_graph, with_more_ids, write_graphs
from export.record import replacing
from export.triton import write_triton
from export.variants import remake_variants

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


@dataclass(frozen=True)
class Gained:
    """What is put into the tables."""

    titles: int
    artworks: int
    rows: Rows
    """Behind those of before."""
    first_of: np.ndarray
    """Rows of old titles that have their first artworks now, int64 (F,), and in `first` their means by table, till now zero."""
    first: Rows


def refresh(folder: Path, dataset: Path, console: Console) -> Refreshed:
    """Add a dataset's new titles and artworks to a bundle, which is replaced when all is done; UserError where that cannot be.

    What the bundle has already is left as it is; where an old artwork's image is another than it was embedded from, that is
    told, and its vectors stay.
    """
    with replacing(folder) as bundle:
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
        of_artworks = _artwork_rows(bundle, artworks, paths, console)
        rows = of_artworks | _title_rows(bundle, titles, artworks, of_artworks)
        firsts = _first_means(bundle, artworks, of_artworks)
        more = dict(words)
        for name, table in (("titles", titles), ("artworks", artworks)):
            more[name] = words[name].extended(table[f"{name[:-1]}_id"].to_pylist())
        _write(bundle, more, Gained(titles.num_rows, artworks.num_rows, rows, *firsts), hashes, console)
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
    """The rows whose id, the first column, a vocabulary lacks; the empty id is nobody's."""
    ids = table.column(0)
    return table.filter(pa.array((known.rows(ids) == 0) & np.array([bool(one) for one in ids.to_pylist()], bool)))


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
    with images_judged(), ThreadPoolExecutor() as pool:
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
        (len(paths), max([wide, *(min(MOST_PEOPLE, np.count_nonzero(row)) for row in shown)])),
        tables["artwork_people"].dtype,
    )
    for place, found in enumerate(shown):
        known = found[found > 0][:MOST_PEOPLE]
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
    return rows | _means(bundle, of_artworks, owned, titles.num_rows)


def _first_means(bundle: Bundle, artworks: pa.Table, of_artworks: Rows) -> tuple[np.ndarray, Rows]:
    """Of titles that the bundle has, without artworks till now: their rows, and the means of their first artworks."""
    known = bundle.vocabularies["titles"].rows(artworks["title_id"])
    of_nothing = np.logical_not(bundle.tables["mean_vector"].any(1) | bundle.tables["mean_content"].any(1))
    rows = np.unique(known[(known > 0) & of_nothing[known]]).astype(np.int64)
    owned = [(int(np.searchsorted(rows, title)), place) for place, title in enumerate(known) if title in rows]
    return rows, _means(bundle, of_artworks, owned, len(rows)) if len(rows) else {}


def _means(bundle: Bundle, of_artworks: Rows, owned: list[tuple[int, int]], titles: int) -> Rows:
    """Means of artworks' rows by title, from (title, artwork) pairs of places; zero where a title has none."""
    rows: Rows = {}
    for part in ("vector", "content", "bias", "engaged"):
        values, name = of_artworks.get(f"artwork_{part}"), f"mean_{part}"
        shape = values.shape[1:] if values is not None else bundle.tables.get(name, np.zeros(1)).shape[1:]
        sums, count = np.zeros((titles, *shape), np.float32), np.zeros(titles, np.float32)
        if values is not None and owned:
            owners, places = np.array(owned).T
            np.add.at(sums, owners, values[places])
            np.add.at(count, owners, 1)
        rows[name] = sums / np.maximum(count, 1).reshape(-1, *[1] * len(shape))
    rows["play_mean_image"] = rows["mean_content"][:, : rows["mean_vector"].shape[1]]
    return rows


def _write(bundle: Bundle, words: Vocabularies, gained: Gained, hashes: list[str], console: Console) -> None:
    """The bundle with rows behind its tables, in place of the old one."""
    old, record = bundle.folder, json.loads(json.dumps(bundle.about))
    with atomic_folder(old, marker=ABOUT) as folder:
        graphs = {
            name: extended(read_graph(old / name), words, gained)
            for name in record["graphs"]
            if name not in (ARTWORK, TITLE)
        }
        write_graphs(graphs, folder)
        write_triton(folder)
        save_vocabularies(words, folder / VOCABULARIES)
        (folder / IMAGES).write_text(json.dumps(hashes))
        for name in (TABLES, POSTERIOR):
            tables = load_file(old / name)
            save_file({key: _behind(_named(key, name), table, gained) for key, table in tables.items()}, folder / name)
        found = load_file(old / TITLE_VECTORS)["title_vector"]
        save_file({"title_vector": _behind("found_by", found, gained)}, folder / TITLE_VECTORS)
        for path in old.iterdir():  # what no new title or artwork changes
            if path.is_file() and not (folder / path.name).exists() and path.name not in (ABOUT, CARD, GOLDEN):
                shutil.copy2(path, folder / path.name)
        _add_cases(bundle, words, gained, folder, record)
        record.setdefault("refreshed", []).append(
            {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "titles": gained.titles,
                "artworks": gained.artworks,
            }
        )
        if "evaluation" in record:
            record["evaluation"].setdefault("refreshed_since", []).append(record["refreshed"][-1]["at"])
        (folder / ABOUT).write_text(json.dumps(record))  # the golden cases read it
        difference = worst_difference(folder)
        if not difference <= record["golden"]["bound"]:
            raise UserError(
                f"{old}: refreshed, its golden cases would differ by {difference:.2g}. It is left as it was."
            )
        record["golden"]["largest_difference"] = difference
        if "precisions" in record:
            record["precisions"] = remake_variants(folder, record["precisions"], difference, console)
        record["files"] = contents_of(folder)
        (folder / CARD).write_text(card_of(record, words), encoding="utf-8")
        record["sha256"] = seals_of(folder)
        (folder / ABOUT).write_text(json.dumps(record, indent=1))


def _named(key: str, file: str) -> str:
    return "artwork_own" if (file, key) == (POSTERIOR, "own") else key


def _add_cases(bundle: Bundle, words: Vocabularies, gained: Gained, folder: Path, record: dict[str, Any]) -> None:
    """Golden cases of the new ids behind those of before, which torch answered; these the bundle over rows answers itself, and
    those that name a title which has its first mean now."""
    cases = [json.loads(line) for line in (bundle.folder / GOLDEN).read_text("utf-8").strip("\n").split("\n")]
    asked, outputs = Bundle(folder, record), list(cases[0]["answer"])

    def answer(request: Rows) -> Rows:
        return asked.rank(request, outputs)

    moved = {words["titles"].values[row - 1] for row in gained.first_of.tolist()}
    cases = [
        case_of(case["request"], answer, words)
        if moved & {case["request"]["title"], *case["request"]["history_title"]}
        else case
        for case in cases
    ]
    fresh = dict(words)
    for name in ("titles", "artworks"):
        values = words[name].values[len(bundle.vocabularies[name].values) :]
        fresh[name] = Vocabulary(values, 0) if values else words[name]
    cases += golden_cases(answer, words, bundle.history_length, drawn=fresh, cases=CASES, seed=len(cases))
    record["golden"]["cases"] = write_golden(iter(cases), folder / GOLDEN)


def extended(model: ModelProto, words: Vocabularies, gained: Gained) -> ModelProto:
    """A graph with rows behind its tables and the new ids in its vocabularies."""
    for tensor in model.graph.initializer:
        name = tensor.name
        if name.startswith((*OF_TITLES, *OF_ARTWORKS)):
            values = numpy_helper.to_array(tensor)
            if name == TITLE_COLUMNS:
                values = np.ascontiguousarray(_behind("found_by", values.T, gained).T)
            else:
                values = _behind(name, values, gained)
            tensor.CopyFrom(numpy_helper.from_array(values, name))
        elif name == "count":
            tensor.CopyFrom(numpy_helper.from_array(np.array([len(words["titles"])], np.int64), name))
    with_more_ids(model, words)
    return model


def _behind(name: str, table: np.ndarray, gained: Gained) -> np.ndarray:
    """A table with its new rows. Of what content does not tell, they have what the unknown row has."""
    if name in gained.first and len(gained.first_of):
        table = table.copy()
        table[gained.first_of] = gained.first[name].reshape(-1, *table.shape[1:])
    if name.startswith(OF_ARTWORKS):
        count = gained.artworks
    elif name.startswith(OF_TITLES):
        count = gained.titles
    else:
        return table
    new = gained.rows.get(name)
    if new is None or not count:
        new = np.repeat(table[:1], count, axis=0)
    if new.ndim == 2 and new.shape[1] > table.shape[1]:  # more people than any artwork showed before
        table = np.pad(table, ((0, 0), (0, new.shape[1] - table.shape[1])))
    if new.ndim < table.ndim:  # one number a row, kept as an axis of length 1
        new = new.reshape(len(new), *table.shape[1:])
    return np.concatenate([table, new.astype(table.dtype)])
