"""`keyart refresh`: adds titles and artworks that are new since the training to a bundle, without training and without torch.

In: a bundle and a dataset, of which titles, artworks and their images or vectors are read. artwork.onnx and title.onnx encode
the new ones from their content alone, as the towers encode untrained ids. Their rows are appended: no former vector changes, not
by a bit, and so no answer to a request without new ids. The means over a title's artworks are such vectors: a title that gains
an artwork keeps its mean; one that had no artwork, and so no mean, gets that of its first ones.

Legend: A new artworks, I new titles, L list length.
"""

import json
import shutil
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from onnx import ModelProto, numpy_helper
from rich.console import Console
from safetensors.numpy import load_file, save_file

from datamodules.contract.check import require_valid
from datamodules.contract.engines import open_engine, to_arrow
from datamodules.contract.tables import ARTWORKS, TITLES, Table
from datamodules.prepare.relations import typed
from datamodules.shards.artwork_vectors import IMAGE
from datamodules.shards.catalogue import YEARS
from datamodules.shards.vocabulary import Vocabularies, Vocabulary, save_vocabularies
from foundation.atomic import atomic_folder
from foundation.errors import UserError
from serving.bundle.bundle import (
    ARTWORK_GRAPH,
    CARD,
    EXPLAIN_TABLES,
    GOLDEN,
    POSTERIOR,
    TITLE_GRAPH,
    TITLE_VECTORS,
    VOCABULARIES,
    Bundle,
    bundle_checksums,
)
from serving.bundle.card import model_card
from serving.bundle.contents import describe_files
from serving.bundle.example import largest_golden_difference, largest_graph_difference
from serving.bundle.golden import golden_cases, make_case, write_golden
from serving.bundle.golden_graphs import write_graph_cases
from serving.bundle.ids import (
    ARTWORK_TABLE_PREFIXES,
    TITLE_TABLE_PREFIXES,
    read_graph,
    update_id_encoders,
    write_graphs,
)
from serving.bundle.metadata import BUNDLE_FILE, BundleRecord, Refreshed
from serving.bundle.new_artworks import (
    HASHES,
    ArtworkTower,
    TableRows,
    open_session,
    padded_lists,
    require_images,
    run_session,
    warn_changed,
)
from serving.bundle.record import open_for_replacement
from serving.bundle.seal import write_draft, write_record
from serving.bundle.triton import write_triton
from serving.bundle.variants import rebuild_variants

TITLE_COLUMNS = "title_vectors"
"""The one table of titles.onnx, by title column."""
CASES = 24
"""Number of golden cases of new titles and artworks."""
TITLE_BATCH = 1024


@dataclass(frozen=True)
class RefreshResult:
    """The numbers of titles and artworks that a bundle gained, and its digest now."""

    titles: int
    artworks: int
    digest: str


@dataclass(frozen=True)
class CatalogueAdditions:
    """New rows of the tables."""

    titles: int
    artworks: int
    rows: TableRows
    """Appended rows by table."""
    first_mean_rows: np.ndarray
    """Rows of old titles that now have their first artworks, int64 (F,), and in `first` their means by table, zero before."""
    first_means: TableRows


def refresh(folder: Path, dataset: Path, console: Console) -> RefreshResult:
    """Add a dataset's new titles and artworks to a bundle, which is replaced when all is done; UserError where that cannot be.

    Existing rows are left as they are; where an old artwork's image or vector differs from the one it was embedded from, a
    warning is printed.
    """
    with open_for_replacement(folder) as bundle:
        tower = ArtworkTower(bundle)
        for name in tower.required_files():
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder / name}: is missing, and encodes new titles and artworks. Export the run again."
                )
        require_valid(dataset, images=False, console=console, tables=(TITLES, ARTWORKS))
        titles, artworks = _read(dataset)
        vocabularies = bundle.vocabularies
        warn_changed(tower, dataset, artworks, console)
        titles, artworks = _new(titles, vocabularies["titles"]), _new(artworks, vocabularies["artworks"])
        if not titles.num_rows and not artworks.num_rows:
            console.print(f"refresh: {folder} has every title and artwork of {dataset}")
            return RefreshResult(0, 0, bundle.digest)
        if IMAGE in tower.sources:
            require_images(dataset, artworks, console)
        hashes = {
            HASHES[source]: json.loads((folder / HASHES[source]).read_text(encoding="utf-8")) + digests
            for source, digests in tower.hashes(dataset, artworks).items()
        }
        of_artworks = tower.rows(dataset, artworks, console)
        rows = of_artworks | _title_rows(bundle, titles, artworks, of_artworks)
        firsts = _first_artwork_means(bundle, artworks, of_artworks)
        more = dict(vocabularies)
        for name, table in (("titles", titles), ("artworks", artworks)):
            more[name] = vocabularies[name].extended(table[f"{name[:-1]}_id"].to_pylist())
        rows["artwork_title"] = more["titles"].rows(artworks["title_id"])
        additions = CatalogueAdditions(titles.num_rows, artworks.num_rows, rows, *firsts)
        digest = _write(bundle, more, additions, hashes, console)
    console.print(
        f"refresh: {folder}: {titles.num_rows:,} titles and {artworks.num_rows:,} artworks more; the rest as it was"
    )
    return RefreshResult(titles.num_rows, artworks.num_rows, digest)


def _read(dataset: Path) -> tuple[pa.Table, pa.Table]:
    """Titles and artworks in the contract's types, sorted by id, as vocabularies are."""

    def rows(table: Table) -> pa.Table:
        key = table.columns[0].name
        return to_arrow(typed(engine, table.files(dataset), table)).sort_by(key)

    with open_engine() as engine:
        return rows(TITLES), rows(ARTWORKS)


def _new(table: pa.Table, known: Vocabulary) -> pa.Table:
    """The rows whose id, the first column, a vocabulary lacks; rows with an empty id are left out."""
    ids = table.column(0)
    return table.filter(pa.array((known.rows(ids) == 0) & np.array([bool(value) for value in ids.to_pylist()], bool)))


def _title_rows(bundle: Bundle, titles: pa.Table, artworks: pa.Table, of_artworks: TableRows) -> TableRows:
    """Rows of the tables by title; means are over the title's artworks, all of which are new."""
    if not titles.num_rows:
        return {}
    session = open_session(bundle.folder / TITLE_GRAPH)
    year = np.clip(titles["release_year"].cast(pa.float64()).to_numpy(zero_copy_only=False), *YEARS).astype(np.float32)
    genres, cast = (padded_lists(titles[name].to_pylist()) for name in ("genres", "cast"))
    parts = []
    for begin in range(0, titles.num_rows, TITLE_BATCH):
        some = slice(begin, begin + TITLE_BATCH)
        parts.append(run_session(session, {"genres": genres[some], "cast": cast[some], "release_year": year[some]}))
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    owner = {title: index for index, title in enumerate(titles["title_id"].to_pylist())}
    owned = [(owner[title], row) for row, title in enumerate(artworks["title_id"].to_pylist()) if title in owner]
    return rows | _means(bundle, of_artworks, owned, titles.num_rows)


def _first_artwork_means(bundle: Bundle, artworks: pa.Table, of_artworks: TableRows) -> tuple[np.ndarray, TableRows]:
    """Rows of the bundle's titles that had no artworks, and the means of their first artworks."""
    known = bundle.vocabularies["titles"].rows(artworks["title_id"])
    of_nothing = np.logical_not(bundle.tables["mean_vector"].any(1) | bundle.tables["mean_content"].any(1))
    rows = np.unique(known[(known > 0) & of_nothing[known]]).astype(np.int64)
    owned = [(int(np.searchsorted(rows, title)), index) for index, title in enumerate(known) if title in rows]
    return rows, _means(bundle, of_artworks, owned, len(rows)) if len(rows) else {}


def _means(bundle: Bundle, of_artworks: TableRows, owned: list[tuple[int, int]], titles: int) -> TableRows:
    """Means of artworks' rows by title, from pairs of indices (title, artwork); zero where a title has none."""
    rows: TableRows = {}
    for part in ("vector", "content", "bias", "engaged"):
        values, name = of_artworks.get(f"artwork_{part}"), f"mean_{part}"
        shape = values.shape[1:] if values is not None else bundle.tables.get(name, np.zeros(1)).shape[1:]
        sums, count = np.zeros((titles, *shape), np.float32), np.zeros(titles, np.float32)
        if values is not None and owned:
            owners, artwork_indices = np.array(owned).T
            np.add.at(sums, owners, values[artwork_indices])
            np.add.at(count, owners, 1)
        rows[name] = sums / np.maximum(count, 1).reshape(-1, *[1] * len(shape))
    rows["play_mean_image"] = rows["mean_content"][:, : bundle.tables["play_mean_image"].shape[1]]
    return rows


def _write(
    bundle: Bundle,
    vocabularies: Vocabularies,
    additions: CatalogueAdditions,
    hashes: dict[str, list[str]],
    console: Console,
) -> str:
    """Replace the bundle by one with rows appended to its tables; returns its digest."""
    old, metadata = bundle.folder, deepcopy(bundle.metadata)
    with atomic_folder(old, marker=BUNDLE_FILE) as folder:
        graphs = {
            name: extended(read_graph(old / name), vocabularies, additions)
            for name in metadata["graphs"]
            if name not in (ARTWORK_GRAPH, TITLE_GRAPH)
        }
        write_graphs(graphs, folder)
        write_triton(folder)
        save_vocabularies(vocabularies, folder / VOCABULARIES)
        for name, digests in hashes.items():
            (folder / name).write_text(json.dumps(digests), encoding="utf-8")
        for name in (EXPLAIN_TABLES, POSTERIOR):
            tables = load_file(old / name)
            save_file(
                {key: _append_rows(_table_name(key, name), table, additions) for key, table in tables.items()},
                folder / name,
            )
        title_vectors = load_file(old / TITLE_VECTORS)["title_vector"]
        save_file({"title_vector": _append_rows("retrieval_vector", title_vectors, additions)}, folder / TITLE_VECTORS)
        for path in old.iterdir():  # files that do not depend on titles and artworks
            if path.is_file() and not (folder / path.name).exists() and path.name not in (BUNDLE_FILE, CARD, GOLDEN):
                shutil.copy2(path, folder / path.name)
        _add_cases(bundle, vocabularies, additions, folder, metadata)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        gained: Refreshed = {"at": now, "titles": additions.titles, "artworks": additions.artworks}
        metadata["refreshed"] = [*metadata.get("refreshed", []), gained]
        if "evaluation" in metadata:
            evaluation = metadata["evaluation"]
            evaluation["refreshed_since"] = [*evaluation.get("refreshed_since", []), now]
        metadata["golden_graphs"]["cases"] = write_graph_cases(folder, metadata, vocabularies)
        write_draft(folder, metadata)  # the golden cases read it
        difference = largest_golden_difference(folder)
        golden = metadata["golden"]
        if not difference <= golden["bound"]:
            raise UserError(
                f"{old}: refreshed, its golden cases would differ by {difference:.2g}. It is left as it was."
            )
        golden["largest_difference"] = difference
        metadata["golden_graphs"]["largest_difference"] = largest_graph_difference(folder)
        metadata["precisions"] = rebuild_variants(folder, metadata["precisions"], difference, console)
        metadata["files"] = describe_files(folder)
        (folder / CARD).write_text(model_card(metadata, vocabularies), encoding="utf-8")
        metadata["sha256"] = bundle_checksums(folder)
        return write_record(folder, metadata)


def _table_name(key: str, file: str) -> str:
    return "artwork_own" if (file, key) == (POSTERIOR, "own") else key


def _add_cases(
    bundle: Bundle, vocabularies: Vocabularies, additions: CatalogueAdditions, folder: Path, metadata: BundleRecord
) -> None:
    """Append golden cases of the new ids, answered by the bundle's graph over rows, and renew those that name a title with a
    first mean; torch answered the others."""
    cases = [json.loads(line) for line in (bundle.folder / GOLDEN).read_text("utf-8").strip("\n").split("\n")]
    refreshed, outputs = Bundle(folder, metadata), list(cases[0]["answer"])

    def answer(request: TableRows) -> TableRows:
        return refreshed.rank(request, outputs)

    moved = {vocabularies["titles"].values[row - 1] for row in additions.first_mean_rows.tolist()}
    cases = [
        make_case(case["request"], answer, vocabularies)
        if moved & {case["request"]["title"], *case["request"]["history_title"]}
        else case
        for case in cases
    ]
    new_vocabularies = dict(vocabularies)
    for name in ("titles", "artworks"):
        values = vocabularies[name].values[len(bundle.vocabularies[name].values) :]
        new_vocabularies[name] = Vocabulary(values, 0) if values else vocabularies[name]
    cases += golden_cases(
        answer,
        vocabularies,
        bundle.context,
        bundle.history_length,
        sampled_from=new_vocabularies,
        cases=CASES,
        seed=len(cases),
    )
    metadata["golden"]["cases"] = write_golden(iter(cases), folder / GOLDEN)


def extended(model: ModelProto, vocabularies: Vocabularies, additions: CatalogueAdditions) -> ModelProto:
    """A graph with rows appended to its tables and the new ids in its vocabularies."""
    for tensor in model.graph.initializer:
        name = tensor.name
        if name.startswith((*TITLE_TABLE_PREFIXES, *ARTWORK_TABLE_PREFIXES)):
            values = numpy_helper.to_array(tensor)
            if name == TITLE_COLUMNS:
                values = np.ascontiguousarray(_append_rows("retrieval_vector", values.T, additions).T)
            else:
                values = _append_rows(name, values, additions)
            tensor.CopyFrom(numpy_helper.from_array(values, name))
        elif name == "count":
            tensor.CopyFrom(numpy_helper.from_array(np.array([len(vocabularies["titles"])], np.int64), name))
    update_id_encoders(model, vocabularies)
    return model


def _append_rows(name: str, table: np.ndarray, additions: CatalogueAdditions) -> np.ndarray:
    """A table with its new rows, which are copies of the unknown row where content does not determine them."""
    if name in additions.first_means and len(additions.first_mean_rows):
        table = table.copy()
        table[additions.first_mean_rows] = additions.first_means[name].reshape(-1, *table.shape[1:])
    if name.startswith(ARTWORK_TABLE_PREFIXES):
        count = additions.artworks
    elif name.startswith(TITLE_TABLE_PREFIXES):
        count = additions.titles
    else:
        return table
    new = additions.rows.get(name)
    if new is None or not count:
        new = np.repeat(table[:1], count, axis=0)
    if new.ndim == 2 and new.shape[1] > table.shape[1]:  # more people than any artwork showed before
        table = np.pad(table, ((0, 0), (0, new.shape[1] - table.shape[1])))
    if new.ndim < table.ndim:  # one number a row, kept as an axis of length 1
        new = new.reshape(len(new), *table.shape[1:])
    return np.concatenate([table, new.astype(table.dtype)])
