"""`keyart recommend`: a bundle over a dataset -> the titles every member should see first, without torch.

In: plays, each member's in order of time. Out: Parquet of member_id, titles, scores (aligned lists, best first). A title's
score is the dot product of the member's vector, an output of the graph, with the title's own: titles that the member played
are left out, and positions on a page do not enter. A title without plays when the bundle was trained is ranked by its content.
Only titles that the dataset has, with an artwork, are listed: those that left the catalogue count as plays alone.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from datamodules.contract.engines import open_engine, spill_folder, to_arrow
from datamodules.contract.tables import MEMBERS, dataset_fingerprint
from datamodules.prepare.assemble import assemble
from datamodules.prepare.relations import MAX_SHARDS, DatasetTables, play_rows
from datamodules.prepare.shard_spill import ShardSpill, encoder_of_plays
from datamodules.shards.shard import Shard
from foundation.atomic import atomic_folder, claimed_output
from foundation.errors import UserError
from foundation.fingerprint import fingerprint
from foundation.progress import progress_bar
from serving.bundle.bundle import TITLE_VECTORS, Bundle

RECOMMENDATIONS_FILE, SPILL = "_titles.json", "spill"
MEMBERS_AT_ONCE = 512
PLAYS_A_SHARD = 1_000_000
ROWS_AT_ONCE = 65_536
LISTS = pa.schema({"member_id": pa.string(), "titles": pa.list_(pa.string()), "scores": pa.list_(pa.float32())})


class TitleRanker:
    """A bundle's member vectors and title vectors."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.title_IW = bundle.load_tables(TITLE_VECTORS)["title_vector"]

    def members(self, plays: dict[str, np.ndarray], length: np.ndarray) -> np.ndarray:
        """Member vectors, float32 (M, W), from the last plays, as `Shard.padded_runs` returns them, and their numbers, (M,)."""
        history = {f"history_{name.removeprefix('play_')}": values for name, values in plays.items()}
        return self.bundle.members(history | {"history_length": length})

    def best(
        self,
        member_MW: np.ndarray,
        top: int,
        exclude: tuple[np.ndarray, np.ndarray],
        listed_I: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the `top` titles of each member, best first, and their scores, each (M, top).

        `exclude`: pairs of member index and title row that are left out, as is the unknown row; `listed_I`: a mask of the title
        rows that may be listed, default all. Where a member has fewer
        titles left than `top`, the list is padded with row 0 and score -inf. Ties go to the lower row.
        """
        score_MI = member_MW @ self.title_IW.T
        score_MI[:, 0] = -np.inf
        if listed_I is not None:
            score_MI[:, ~listed_I] = -np.inf
        score_MI[exclude] = -np.inf
        top = min(top, score_MI.shape[1])
        best_rows = np.sort(np.argpartition(-score_MI, top - 1, axis=1)[:, :top], axis=1)
        score = np.take_along_axis(score_MI, best_rows, 1)
        order = np.argsort(-score, axis=1, kind="stable")
        best_rows, score = np.take_along_axis(best_rows, order, 1), np.take_along_axis(score, order, 1)
        return np.where(np.isfinite(score), best_rows, 0), score


def recommend(
    bundle: Bundle,
    dataset: Path,
    out: Path,
    *,
    top: int = 10,
    before: datetime | None = None,
    console: Console | None = None,
) -> int:
    """Write the `top` titles for every member of plays and of `members.parquet`; returns how many members.

    `before`: only plays before that moment count; default: all plays. A member without plays gets the list of an unknown
    member. `out` appears when it is complete.
    """
    if top < 1:
        raise UserError(f"top={top}: must be at least 1.")
    console = console or Console(stderr=True)
    ranker = TitleRanker(bundle)
    names = pa.array([None, *bundle.vocabularies["titles"].values], pa.string())
    moment = None if before is None else round(before.timestamp() * 1_000_000)
    members = 0
    with (
        claimed_output(out, RECOMMENDATIONS_FILE, dataset=dataset, sources=[bundle.folder]),
        atomic_folder(out, marker=RECOMMENDATIONS_FILE) as folder,
        open_engine(spill=spill_folder(out)) as engine,
    ):
        log = DatasetTables.read(engine, dataset, drop_invalid=False)
        listed_I = _listed_titles(log, bundle, dataset, console)
        plays = int(to_arrow(log.plays.aggregate(plays=log.plays.count()))["plays"][0].as_py())
        shards = min(MAX_SHARDS, max(1, -(-plays // PLAYS_A_SHARD)))
        spill = ShardSpill(folder / SPILL, shards)
        with progress_bar(console) as progress:
            task = progress.add_task("recommend: plays", total=plays)
            encode = encoder_of_plays(bundle.vocabularies)
            spill.fill(
                engine.batches(play_rows(log, shards), ROWS_AT_ONCE), encode, lambda n: progress.advance(task, n)
            )
            task = progress.add_task("recommend: members", total=None)
            played: list[pa.Array] = []
            for s in range(shards):
                rows = spill.read(s)
                if rows is None or not len(rows):
                    continue
                shard, _ = assemble(rows, None, (0, 0), ())
                ids = pc.unique(rows["member_id"])
                ids = ids.take(pc.array_sort_indices(ids))  # the order of a shard's members
                played.append(ids)
                with pq.ParquetWriter(folder / f"part-{s:05d}.parquet", LISTS) as writer:
                    for begin, best_rows, score in _lists(ranker, shard, top, moment, listed_I):
                        writer.write_table(_table(ids.slice(begin, len(best_rows)), best_rows, score, names))
                        members += len(best_rows)
                        progress.advance(task, len(best_rows))
            without_plays = _members_without_plays(dataset, played)
            if len(without_plays):
                nobody = _empty_shard().padded_runs(np.zeros(1, np.int64), np.zeros(1, np.int64))
                vector = ranker.members(nobody, np.zeros(1, np.int64))
                best_rows, score = (
                    np.repeat(part, len(without_plays), 0)
                    for part in ranker.best(vector, top, (np.zeros(0, int), np.zeros(0, int)), listed_I)
                )
                pq.write_table(_table(without_plays, best_rows, score, names), folder / "part-new.parquet")
                members += len(without_plays)
        spill.path.unlink(missing_ok=True)
        record = {
            "fingerprint": fingerprint(bundle.content_checksums, dataset_fingerprint(dataset), top, moment),
            "members": members,
            "without_plays": len(without_plays),
            "titles": int(listed_I.sum()),
            "top": top,
            "before": before and before.isoformat(),
        }
        (folder / RECOMMENDATIONS_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
    console.print(
        f"recommend: {top} titles each for {members:,} members in {out}, {len(without_plays):,} of them without plays"
    )
    return members


def _listed_titles(log: DatasetTables, bundle: Bundle, dataset: Path, console: Console) -> np.ndarray:
    """Which title rows may be listed, bool (I,): those of titles in the dataset's catalogue that have an artwork there.

    Says how many titles of the bundle are not, and how many of the dataset the bundle does not know. UserError where none is left.
    """
    known = bundle.vocabularies["titles"]
    titles = pc.unique(to_arrow(log.titles.select("title_id"))["title_id"])
    with_artworks = pc.unique(to_arrow(log.artworks.select("title_id"))["title_id"])
    shown = pc.is_in(titles, value_set=with_artworks)
    listed_I = np.zeros(len(known), bool)
    listed_I[known.rows(titles.filter(shown))] = True
    in_catalogue = np.zeros(len(known), bool)
    in_catalogue[known.rows(titles)] = True
    listed_I[0] = False
    left = [known.values[row - 1] for row in np.flatnonzero(~in_catalogue[1:]) + 1]
    bare = [known.values[row - 1] for row in np.flatnonzero(in_catalogue[1:] & ~listed_I[1:]) + 1]
    new = titles.filter(pa.array(known.rows(titles) == 0))
    for ids, words in (
        (left, f"titles of {bundle.folder} are not in {dataset}/titles.parquet"),
        (bare, f"titles have no artwork in {dataset}/artworks.parquet"),
        (new.to_pylist(), f"titles of {dataset} are not known to {bundle.folder}: keyart refresh adds them. They"),
    ):
        if ids:
            console.print(
                f"recommend: {len(ids):,} {words} (first: {ids[0]}): not listed", soft_wrap=True, markup=False
            )
    if not listed_I.any():
        raise UserError(
            f"{dataset}: none of its titles with artworks is known to {bundle.folder}. Give the bundle of this catalogue."
        )
    return listed_I


def _lists(
    ranker: TitleRanker, shard: Shard, top: int, moment: int | None, listed_I: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """By block of members: index of the first one, and titles and scores of all, (M, top)."""
    reach = ranker.bundle.history_length
    start, end = shard.member_plays[:-1], shard.member_plays[1:]
    if moment is not None:
        plays_before = np.concatenate([[0], np.cumsum(shard.play_time < moment)])
        end = start + plays_before[end] - plays_before[start]
    for begin in range(0, len(start), MEMBERS_AT_ONCE):
        first, last = start[begin : begin + MEMBERS_AT_ONCE], end[begin : begin + MEMBERS_AT_ONCE]
        length = np.minimum(last - first, reach)
        vectors = ranker.members(shard.padded_runs(last - length, length), length)
        count = last - first
        owner = np.repeat(np.arange(len(first)), count)
        offset = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        yield begin, *ranker.best(vectors, top, (owner, shard.play_title[first[owner] + offset]), listed_I)


def _empty_shard() -> Shard:
    return assemble(None, None, (0, 0), ())[0]


def _members_without_plays(dataset: Path, played: list[pa.Array]) -> pa.Array:
    """Members of `members.parquet`, if it exists, without plays."""
    files = MEMBERS.files(dataset)
    if not files:
        return pa.array([], pa.string())
    ids = pa.concat_tables(pq.read_table(path, columns=["member_id"]) for path in files)["member_id"].cast(pa.string())
    known = pa.chunked_array(played, pa.string()).combine_chunks()
    return pc.unique(ids.filter(pc.invert(pc.is_in(ids, value_set=known))))


def _table(ids: pa.Array, best_rows: np.ndarray, score: np.ndarray, names: pa.Array) -> pa.Table:
    """Lists of ids and scores; a member's list ends at row 0."""
    is_title = best_rows > 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(is_title.sum(1))]).astype(np.int32))
    titles = pa.ListArray.from_arrays(offsets, names.take(pa.array(best_rows[is_title])))
    scores = pa.ListArray.from_arrays(offsets, pa.array(score[is_title].astype(np.float32)))
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return pa.table({"member_id": ids, "titles": titles, "scores": scores}, schema=LISTS)
