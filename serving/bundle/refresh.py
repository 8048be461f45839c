"""`keyart refresh`: adds titles and artworks that are new since the training to a bundle, and takes others out, without training
and without torch.

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
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from safetensors.numpy import load_file, save_file

from datamodules.contract.check import require_valid
from datamodules.contract.engines import open_engine, to_arrow
from datamodules.contract.tables import ARTWORKS, TITLES, Table
from datamodules.prepare.relations import typed
from datamodules.shards.artwork_vectors import IMAGE
from datamodules.shards.catalogue import YEARS, build_catalogue
from datamodules.shards.vocabulary import Vocabularies, Vocabulary, save_vocabularies
from foundation.atomic import atomic_folder
from foundation.errors import UserError
from serving.bundle.bundle import (
    ARTWORK_GRAPH,
    CARD,
    EXPLAIN_TABLES,
    GOLDEN,
    GOLDEN_GRAPHS,
    POSTERIOR,
    TITLE_GRAPH,
    TITLE_VECTORS,
    VOCABULARIES,
    Bundle,
    bundle_checksums,
)
from serving.bundle.card import model_card
from serving.bundle.catalogue_change import CatalogueChange, changed_graph, changed_table
from serving.bundle.contents import describe_files
from serving.bundle.encoded_content import (
    Encoded,
    load_encoded,
    merged_content,
    save_encoded,
    warn_changed_content,
    without_rows,
)
from serving.bundle.example import largest_golden_difference, largest_graph_difference
from serving.bundle.golden import UNKNOWN_ID, golden_cases, make_case, write_golden
from serving.bundle.golden_graphs import write_graph_cases
from serving.bundle.hard_links import sha256
from serving.bundle.ids import read_graph, write_graphs
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
from serving.bundle.withdrawal import withdrawn_rows

CASES = 24
"""Number of golden cases of new titles and artworks."""
TITLE_BATCH = 1024


@dataclass(frozen=True)
class RefreshResult:
    """The numbers of titles and artworks that a bundle gained and lost, and its digest now."""

    titles: int
    artworks: int
    withdrawn_titles: int
    withdrawn_artworks: int
    digest: str


def refresh(folder: Path, dataset: Path, console: Console, withdraw: str | None = None) -> RefreshResult:
    """Add a dataset's new titles and artworks to a bundle, which is replaced when all is done; UserError where that cannot be.

    Rows that stay are left as they are; where the image or vector of an old artwork, what it depicts, or the genres, cast or year
    of an old title differ from what they were encoded from, a warning is printed. `withdraw`: ids of titles and artworks that are
    taken out, or a file of them: see `serving.bundle.withdrawal`. Requests that name them are answered as of unknown ids.
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
        content = load_encoded(folder)
        withdrawn = withdrawn_rows(withdraw, vocabularies, content)
        warn_changed(tower, dataset, artworks, console)
        more = dict(vocabularies)
        for name, table in (("titles", titles), ("artworks", artworks)):
            more[name] = vocabularies[name].extended(table[f"{name[:-1]}_id"].to_pylist())
        catalogue = build_catalogue(titles, artworks, more)
        present = {"titles": more["titles"].rows(titles["title_id"])}
        present["artworks"] = more["artworks"].rows(artworks["artwork_id"])
        warn_changed_content(content, catalogue, present, vocabularies, console)
        _warn_of_withdrawn(withdrawn, present, vocabularies, dataset, console)
        titles, artworks = _new(titles, vocabularies["titles"]), _new(artworks, vocabularies["artworks"])
        lost = {name: len(rows) for name, rows in withdrawn.items()}
        if not titles.num_rows and not artworks.num_rows and not any(lost.values()):
            console.print(f"refresh: {folder} has every title and artwork of {dataset}")
            return RefreshResult(0, 0, 0, 0, bundle.digest)
        if IMAGE in tower.sources:
            require_images(dataset, artworks, console)
        hashes = {
            HASHES[source]: json.loads((folder / HASHES[source]).read_text(encoding="utf-8")) + digests
            for source, digests in tower.hashes(dataset, artworks).items()
        }
        of_artworks = tower.rows(dataset, artworks, console)
        rows = of_artworks | _title_rows(bundle, titles, artworks, of_artworks)
        firsts = _first_artwork_means(bundle, artworks, of_artworks)
        rows["artwork_title"] = more["titles"].rows(artworks["title_id"])
        if "artwork_expected" in bundle.tables:
            rows["artwork_expected"] = np.full(artworks.num_rows, bundle.tables["artwork_expected"][0], np.float32)
        change = CatalogueChange(titles.num_rows, artworks.num_rows, rows, *firsts, withdrawn)
        content = without_rows(merged_content(content, catalogue, more, vocabularies), withdrawn)
        for name, table in (("titles", titles), ("artworks", artworks)):
            more[name] = change.vocabulary(name, vocabularies[name], table[f"{name[:-1]}_id"].to_pylist())
        hashes = {name: np.delete(digests, withdrawn["artworks"] - 1).tolist() for name, digests in hashes.items()}
        digest = _write(bundle, more, change, hashes, content, console)
    console.print(
        f"refresh: {folder}: {titles.num_rows:,} titles and {artworks.num_rows:,} artworks more, {lost['titles']:,} and "
        f"{lost['artworks']:,} withdrawn; the rest as it was"
    )
    return RefreshResult(titles.num_rows, artworks.num_rows, lost["titles"], lost["artworks"], digest)


def _warn_of_withdrawn(
    withdrawn: dict[str, np.ndarray],
    present: dict[str, np.ndarray],
    vocabularies: Vocabularies,
    dataset: Path,
    console: Console,
) -> None:
    """Say which of the ids that are taken out a dataset still has."""
    for name, rows in withdrawn.items():
        again = np.intersect1d(rows, present[name])
        if len(again):
            first = vocabularies[name].values[int(again[0]) - 1]
            console.print(
                f"refresh: {len(again):,} withdrawn {name} are still in {dataset}/{name}.parquet (first: {first}): remove them "
                "there, or the next refresh adds them again.",
                soft_wrap=True,
                markup=False,
            )


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
    change: CatalogueChange,
    hashes: dict[str, list[str]],
    content: Encoded,
    console: Console,
) -> str:
    """Replace the bundle by one with the tables after a change; returns its digest."""
    old, metadata = bundle.folder, deepcopy(bundle.metadata)
    with atomic_folder(old, marker=BUNDLE_FILE) as folder:
        graphs = {
            name: changed_graph(read_graph(old / name), vocabularies, change)
            for name in metadata["graphs"]
            if name not in (ARTWORK_GRAPH, TITLE_GRAPH)
        }
        write_graphs(graphs, folder)
        write_triton(folder)
        save_vocabularies(vocabularies, folder / VOCABULARIES)
        save_encoded(content, folder)
        for name, digests in hashes.items():
            (folder / name).write_text(json.dumps(digests), encoding="utf-8")
        for name in (EXPLAIN_TABLES, POSTERIOR):
            tables = load_file(old / name)
            save_file(
                {key: changed_table(_table_name(key, name), table, change) for key, table in tables.items()},
                folder / name,
            )
        title_vectors = load_file(old / TITLE_VECTORS)["title_vector"]
        save_file({"title_vector": changed_table("retrieval_vector", title_vectors, change)}, folder / TITLE_VECTORS)
        for name, checksum in metadata["sha256"].items():  # files that do not depend on titles and artworks
            if "/" not in name and not (folder / name).exists() and name not in (CARD, GOLDEN, GOLDEN_GRAPHS):
                shutil.copy2(old / name, folder / name, follow_symlinks=False)
                if (folder / name).is_symlink() or sha256(folder / name) != checksum:
                    raise UserError(f"{old / name}: was changed while the bundle was refreshed. Export the run again.")
        _change_cases(bundle, vocabularies, change, folder, metadata)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        refreshed: Refreshed = {
            "at": now,
            "titles": change.titles,
            "artworks": change.artworks,
            "withdrawn_titles": len(change.withdrawn["titles"]),
            "withdrawn_artworks": len(change.withdrawn["artworks"]),
        }
        metadata["refreshed"] = [*metadata.get("refreshed", []), refreshed]
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


def _change_cases(
    bundle: Bundle, vocabularies: Vocabularies, change: CatalogueChange, folder: Path, metadata: BundleRecord
) -> None:
    """Append golden cases of the new ids, answered by the bundle's graph over rows, and renew those that name a title with a
    first mean, or a withdrawn id, which becomes an unknown one; torch answered the others."""
    cases = [json.loads(line) for line in (bundle.folder / GOLDEN).read_text("utf-8").strip("\n").split("\n")]
    refreshed, outputs = Bundle(folder, metadata), list(cases[0]["answer"])

    def answer(request: TableRows) -> TableRows:
        return refreshed.rank(request, outputs)

    old = bundle.vocabularies
    moved = {old["titles"].values[row - 1] for row in change.first_mean_rows.tolist()}
    gone = {name: {old[name].values[row - 1] for row in rows.tolist()} for name, rows in change.withdrawn.items()}
    renewed = []
    for case in cases:
        request = _without_ids(case["request"], gone)
        again = request != case["request"] or moved & {request["title"], *request["history_title"]}
        renewed.append(make_case(request, answer, vocabularies) if again else case)
    if change.titles or change.artworks:
        new_vocabularies, known = dict(vocabularies), {name: set(old[name].values) for name in gone}
        for name in gone:
            values = [value for value in vocabularies[name].values if value not in known[name]]
            new_vocabularies[name] = Vocabulary(values, 0) if values else vocabularies[name]
        renewed += golden_cases(
            answer,
            vocabularies,
            bundle.context,
            bundle.request_lengths,
            sampled_from=new_vocabularies,
            cases=CASES,
            seed=len(cases),
        )
    cases = renewed
    metadata["golden"]["cases"] = write_golden(iter(cases), folder / GOLDEN)


def _without_ids(request: dict[str, Any], gone: dict[str, set[str]]) -> dict[str, Any]:
    """A request in plain values whose withdrawn ids are unknown ones."""

    def kept(value: Any, ids: set[str]) -> Any:
        if isinstance(value, list):
            return [kept(part, ids) for part in value]
        return UNKNOWN_ID if value in ids else value

    kinds = {"history_title": "titles", "title": "titles", "history_artwork": "artworks", "artworks": "artworks"}
    kinds |= {"past_artwork": "artworks"}
    return {name: kept(value, gone[kinds[name]]) if name in kinds else value for name, value in request.items()}
