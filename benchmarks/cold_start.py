"""`keyart bench cold`: figures for artworks, titles and members that training never saw.

Two rankers are trained: one on the full log (`seen`), one without the held-out titles and artworks (`keyart`). Before the test
period, no impression showed a held-out artwork or had it among its candidates, and a held-out title has neither
impressions nor plays. Both are evaluated on the same impressions of the test period, and, for new members, as if members had
no plays. The catalogue is complete, as a service's is: the image encoder, which learns no clicks, has seen all images.
`keyart refresh` is the ranker of `keyart` in a bundle of the titles and artworks that training saw, the others added by refresh.

Where the truth is known, figures are captured lift, (value - uniform) / (best possible - uniform); else the lift over
uniform, doubly robust, in percent.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported, where no type checker sees them.

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.ranges import require_at_least
from benchmarks.table import OURS, Row
from configs.arguments import RECIPES, parse
from datamodules.contract.tables import IMPRESSIONS, PLAYS
from datamodules.prepare.prepare import prepare
from datamodules.shards.vocabulary import Vocabulary
from datamodules.simulator.simulate import SimulateConfig, simulate
from evaluation.audits.attribution import lift_row
from evaluation.logs.log_review import to_bandit_log
from evaluation.logs.log_slices import plays_before, read_impression_attributes
from evaluation.logs.logged_impressions import read_outcomes
from evaluation.logs.policies import best_fixed, uniform
from evaluation.logs.scored_log import ScoredLog, read_scored_log
from evaluation.off_policy.intervals import Members
from evaluation.off_policy.valuation import importance_weights
from evaluation.period import newest_shares
from export.export import EmbeddedArtworks, export
from foundation.errors import UserError
from foundation.lists import Lists
from models.content_towers import ArtworkEmbedding
from models.two_tower import Content, TwoTower
from serving.bundle.bundle import Bundle
from serving.bundle.refresh import refresh
from serving.scoring.score import score
from train.embed import embed, load_encoder
from train.embed_config import EMBEDDING_RECORD as EMBEDDED
from train.fit import fit
from train.recipe import Recipe
from train.run import Run

NAME = "cold"
SEEN, BEST_PER_TITLE, REFRESHED = "seen", "best per title", f"{OURS} refresh"
GROUPS = {
    "known": "nothing held out, members with plays",
    "new artwork": "a candidate that training never saw, of a title that it did",
    "new title": "a title that training never saw",
    "new member": "the same impressions as known, scored as if the member had no plays",
}
MIN_IMPRESSIONS = 50
"""Impressions of a group below which it is not reported."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the benchmark."""

    dataset: str = ""
    """A dataset by the contract; default: a simulated service, whose truth is known."""
    recipe: str = ""
    """A recipe's file; default: configs/demo.yaml for the simulated service, else the default recipe."""
    held_out: float = 0.1
    """Share of the artworks, and of the titles, that training does not see."""
    seeds: int = 1
    """Number of repetitions, each with other artworks and titles held out and another seed of the training."""
    members: int = 4000
    """Members of the simulated service."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.held_out <= 0.5:
            raise UserError(f"held_out={self.held_out}: must lie in (0, 0.5].")
        require_at_least(self, seeds=1)


def bench(config: Config, console: Console) -> list[Row]:
    """Figures by group and subject: the mean over seeds, and their standard deviation where there are several."""
    with tempfile.TemporaryDirectory(prefix="keyart-bench-") as folder:
        work = Path(folder)
        dataset = Path(config.dataset) if config.dataset else work / "service"
        if not config.dataset:
            simulate(dataset, SimulateConfig(members=config.members))
        recipe = read_recipe(config)
        figures: dict[tuple[str, str], list[float]] = {}
        counts: dict[str, list[float]] = {}
        for seed in range(config.seeds):
            console.print(f"bench cold: seed {seed}, two rankers are trained")
            for group, subject, value, count in run_seed(dataset, work / f"seed-{seed}", recipe, config.held_out, seed):
                figures.setdefault((group, subject), []).append(value)
                counts.setdefault(group, []).append(count)
            shutil.rmtree(work / f"seed-{seed}")
        known = (dataset / "truth").is_dir()
    unit = "captured lift" if known else "lift, %"
    rows = []
    for (group, subject), values in figures.items():
        rows.append(Row(benchmark=NAME, subject=subject, figure=group, unit=unit, value=float(np.mean(values))))
        if len(values) > 1:
            spread = float(np.std(values, ddof=1))
            rows.append(
                Row(benchmark=NAME, subject=subject, figure=f"{group}, spread of seeds", unit=unit, value=spread)
            )
    for group, values in counts.items():
        console.print(f"bench cold: {group} ({GROUPS[group]}): {np.mean(values):,.0f} impressions")
    return rows


def read_recipe(config: Config) -> Recipe:
    """The recipe of the file, or the default one for the dataset."""

    def made(*, settings: Recipe) -> None:
        """A recipe."""

    path = Path(config.recipe) if config.recipe else None if config.dataset else RECIPES / "demo.yaml"
    return parse("bench cold", made, "recipe", [] if path is None else ["--config", str(path)], None)["settings"]


def run_seed(
    dataset: Path, work: Path, recipe: Recipe, share: float, seed: int
) -> Iterator[tuple[str, str, float, int]]:
    """Yield (group, subject, figure, impressions) for both rankers and the best artwork per title."""
    since = newest_shares(dataset, recipe.prepare).test_from
    titles, artworks = sample_held_out(dataset, share, seed)
    hold_out(dataset, work / "without", since, titles, artworks)
    drop_plays(dataset, work / "bare")
    logs: dict[str, ScoredLog] = {}
    new_member_policies: dict[str, Lists] = {}
    bundles = {
        subject: trained(log, work / subject, recipe, seed)
        for subject, log in ((OURS, work / "without"), (SEEN, dataset))
    }
    bundles[REFRESHED] = refresh_bundle(work / OURS / "run", dataset, work / REFRESHED)
    for subject, bundle in bundles.items():
        scored, bare = (
            _scored(bundle, log, work / subject / f"scores-{log.name}", since) for log in (dataset, work / "bare")
        )
        selected = np.flatnonzero(scored.width > 1)
        order = selected[np.argsort(scored.member[selected], kind="stable")]
        logs[subject], new_member_policies[subject] = scored.take(order), bare.policy_NK.take(order)
    log = logs[OURS]
    attributes = read_impression_attributes(dataset, log, since)
    new_title = np.asarray(pc.is_in(attributes.title, value_set=titles))
    new_A = np.asarray(pc.is_in(log.artworks, value_set=artworks))
    new_artwork = log.artwork_NK.like(new_A[log.artwork_NK.values_C]).reduce(np.logical_or) & ~new_title
    no_plays = plays_before(dataset, log.shown_at, attributes.member) == 0
    known = ~new_title & ~new_artwork & ~no_plays
    masks = {"known": known, "new artwork": new_artwork, "new title": new_title, "new member": known}
    outcomes = read_outcomes(work / "without", since)
    policies = {subject: scored.policy_NK for subject, scored in logs.items()}
    if outcomes is not None:
        policies[BEST_PER_TITLE] = best_fixed(log, outcomes)
    for group, at in masks.items():
        if at.sum() < MIN_IMPRESSIONS:
            continue
        group_policies = policies | new_member_policies if group == "new member" else policies
        for subject, figure in _figures(
            log.where(at), {name: p_NK.take(np.flatnonzero(at)) for name, p_NK in group_policies.items()}
        ).items():
            yield group, subject, figure, int(at.sum())


def _figures(log: ScoredLog, policies: dict[str, Lists]) -> dict[str, float]:
    """By policy, captured lift by the truth, or the lift over uniform in percent."""
    uniform_NK = uniform(log)
    if log.true_click_NK is not None:
        truth_NK = log.true_click_NK
        best = float(truth_NK.reduce(np.maximum).mean())
        true = {
            name: float(truth_NK.like(p_NK.values_C * truth_NK.values_C).sums().mean())
            for name, p_NK in (policies | {"": uniform_NK}).items()
        }
        return {name: (true[name] - true[""]) / (best - true[""]) for name in policies}
    arrays = to_bandit_log(log)
    weighted_log = importance_weights(
        arrays, {name: p_NK.__getitem__ for name, p_NK in (policies | {"uniform": uniform_NK}).items()}
    )
    members = Members.of(arrays.member_N)
    ones = np.ones(len(log))
    lifts = {}
    for name in policies:
        sides = [members.sums(((weighted_log.dr_scores_N(side, "clicked"), ones),)) for side in (name, "uniform")]
        relative = lift_row(*sides)["relative"]
        lifts[name] = float("nan") if relative is None else 100 * relative
    return lifts


def trained(log: Path, work: Path, recipe: Recipe, seed: int) -> Bundle:
    """Prepare, embed, fit and export."""
    quiet = Console(quiet=True)
    prepare(log, work / "shards", recipe.prepare, console=quiet)
    embed(log, work / "shards", recipe.embed, quiet)
    fit(work / "shards", work / "run", replace(recipe.fit, seed=seed), console=quiet)
    run = Run.open(work / "run")
    export(run.model, run.vocabularies, work / "bundle", origin={}, console=quiet)
    return Bundle.open(work / "bundle")


def refresh_bundle(run: Path, dataset: Path, work: Path) -> Bundle:
    """A run's bundle with only the titles and artworks that training saw, then refreshed from the whole dataset."""
    opened, quiet = Run.open(run), Console(quiet=True)
    old, state = opened.model, opened.model.state_dict()
    rows = {"title": old.sizes.titles, "artwork": old.sizes.artworks}
    cut = {name: state[name][: rows[name.split("_")[0]]] for name in Content._fields}
    trained_mask = cut["title_artworks_IL"] < old.sizes.artworks
    cut["title_artworks_IL"] = cut["title_artworks_IL"] * trained_mask
    model = TwoTower(old.config, old.sizes, Content(**cut))
    model.load_state_dict({name: values for name, values in state.items() if name not in cut}, strict=False)
    vocabularies = {
        name: Vocabulary(known.values[: known.trained], known.trained) for name, known in opened.vocabularies.items()
    }
    hashes = json.loads((run / EMBEDDED).read_text(encoding="utf-8"))["images"][: old.sizes.artworks - 1]
    images = EmbeddedArtworks(ArtworkEmbedding(*load_encoder(run)), hashes)
    export(model.eval(), vocabularies, work / "bundle", origin={}, images=images, console=quiet)
    refresh(work / "bundle", dataset, quiet)
    return Bundle.open(work / "bundle")


def _scored(bundle: Bundle, dataset: Path, out: Path, since: datetime) -> ScoredLog:
    """The test period of a dataset, scored by a bundle."""
    score(bundle, dataset, out, since=since, console=Console(quiet=True))
    return read_scored_log(dataset, out, since)


def drop_plays(dataset: Path, out: Path) -> None:
    """Write the dataset without plays."""
    out.mkdir(parents=True)
    for path in dataset.iterdir():
        if path.name != PLAYS.name:
            (out / path.name).symlink_to(path.resolve())
    (out / PLAYS.name).mkdir()
    path = PLAYS.files(dataset)[0]
    pq.write_table(pq.read_table(path).slice(0, 0), out / PLAYS.name / path.name)


def sample_held_out(dataset: Path, share: float, seed: int) -> tuple[pa.Array, pa.Array]:
    """Ids of titles, and of artworks of other titles that keep at least one, drawn at random."""
    table = pq.read_table(dataset / "artworks.parquet", columns=["artwork_id", "title_id"])
    rng = np.random.default_rng(seed)
    titles = np.array(sorted(set(table["title_id"].to_pylist())))
    is_held_out = set(rng.choice(titles, max(1, round(share * len(titles))), replace=False).tolist())
    chosen, left = [], dict.fromkeys(titles.tolist(), 0)
    for title in table["title_id"].to_pylist():
        left[title] += 1
    rows = table.to_pylist()
    for index in rng.permutation(len(rows)).tolist():
        title = rows[index]["title_id"]
        if len(chosen) >= round(share * len(rows)):
            break
        if title not in is_held_out and left[title] > 1:
            left[title] -= 1
            chosen.append(rows[index]["artwork_id"])
    return pa.array(sorted(is_held_out), pa.string()), pa.array(sorted(chosen), pa.string())


def hold_out(dataset: Path, out: Path, since: datetime, titles: pa.Array, artworks: pa.Array) -> None:
    """Write the dataset as if the titles and artworks had not existed before `since`; later rows stay."""
    out.mkdir(parents=True)
    for path in dataset.iterdir():
        if path.name not in (IMPRESSIONS.name, PLAYS.name):
            (out / path.name).symlink_to(path.resolve())
    moment = pa.scalar(since, pa.timestamp("us", "UTC"))
    (out / PLAYS.name).mkdir()
    for path in PLAYS.files(dataset):
        table = pq.read_table(path)
        is_held_out = pc.is_in(table["title_id"].cast(pa.string()), value_set=titles)
        early = pc.less(table["played_at"].cast(pa.timestamp("us", "UTC"), safe=False), moment)
        table = table.filter(pc.invert(pc.and_(is_held_out, early)))
        pq.write_table(_without(table, artworks), out / PLAYS.name / path.name)
    (out / IMPRESSIONS.name).mkdir()
    for path in IMPRESSIONS.files(dataset):
        table = pq.read_table(path)
        early = pc.less(table["shown_at"].cast(pa.timestamp("us", "UTC"), safe=False), moment)
        is_held_out = pc.or_(
            pc.is_in(table["title_id"].cast(pa.string()), value_set=titles),
            pc.is_in(table["artwork_id"].cast(pa.string()), value_set=artworks),
        )
        table = table.filter(pc.invert(pc.and_(is_held_out, early)))
        pq.write_table(_narrowed(table, moment, artworks), out / IMPRESSIONS.name / path.name)


def _without(plays: pa.Table, artworks: pa.Array) -> pa.Table:
    """Plays that were not clicked through one of the artworks."""
    if "artwork_id" not in plays.column_names:
        return plays
    column = plays["artwork_id"].cast(pa.string())
    hidden = pc.is_in(column, value_set=artworks)
    index = plays.column_names.index("artwork_id")
    return plays.set_column(index, "artwork_id", pc.if_else(hidden, pa.scalar(None, pa.string()), column))


def _narrowed(table: pa.Table, moment: pa.Scalar, artworks: pa.Array) -> pa.Table:
    """Impressions before the moment with the artworks removed from the candidates, propensities renormalised."""
    early = pc.less(table["shown_at"].cast(pa.timestamp("us", "UTC"), safe=False), moment).to_numpy(
        zero_copy_only=False
    )
    lists = table["candidates"].combine_chunks()
    lists = pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) else lists
    flat = lists.flatten()
    owner = np.repeat(np.arange(len(lists)), np.asarray(pc.list_value_length(lists)))
    keep = ~(np.asarray(pc.is_in(flat.cast(pa.string()), value_set=artworks)) & early[owner])
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.bincount(owner[keep], minlength=len(lists)))]), pa.int32())
    selected = pa.array(np.flatnonzero(keep))
    table = table.set_column(
        table.column_names.index("candidates"), "candidates", pa.ListArray.from_arrays(offsets, flat.take(selected))
    )
    if "propensities" in table.column_names and table["propensities"].null_count == 0:
        column = table["propensities"].combine_chunks()
        column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        value = np.asarray(column.flatten(), np.float64)[keep]
        total = np.bincount(owner[keep], value, len(lists))
        total[np.bincount(owner[~keep], minlength=len(lists)) == 0] = 1.0  # nothing removed: unchanged
        values = pa.ListArray.from_arrays(offsets, pa.array(value / total[owner[keep]], pa.float32()))
        table = table.set_column(table.column_names.index("propensities"), "propensities", values)
    return table
