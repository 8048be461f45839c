"""`keyart bench titles`: which title a member plays next, beside popularity, neighbours, EASE, and SASRec and HSTU.

Protocol. A play is a rating, whatever its stars; a title counts where a member first played it; plays at one instant are in
a random order, the same for every subject. Each member's last play is the test, the one before it the validation, and
members with fewer than three plays are left out. All subjects learn from the plays before the validation; settings and the
number of epochs were chosen on the validation (for SASRec and HSTU: the best epoch, here); for the test, histories include
the validation play. All titles of the catalogue that the member has not played are ranked, none are sampled. There is one
target title: NDCG@10 is 1 / log2(rank + 1), HR@10 whether it is among the ten, both means over members.

New titles. The newest tenth of the titles, by release year, is held out of all training: only content (genres, cast, year)
can rank them. The target is the last held-out title that a member played, among all held-out titles, from the plays before
it; popularity, EASE and models of ids cannot rank them. `same genres` ranks by the cosine of a title's genres and the mean
of those played.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from benchmarks.ranges import require_at_least
from benchmarks.subprocess_usage import measure
from benchmarks.table import OURS, Row
from benchmarks.title_baselines import RECENT, ease, item_knn, popularity, same_genres
from benchmarks.title_log import (
    TOP_K,
    TitleLog,
    as_shard,
    catalogue_of,
    ndcg_and_hits,
    read_log,
    title_rows,
    top_titles,
    vocabularies_of,
)
from configs.arguments import RECIPES, parse
from datamodules.feed.play_feed import PlaysFeed
from datamodules.simulator.simulate import SimulateConfig, simulate
from foundation.errors import UserError
from foundation.progress import progress_bar
from models.retrieval import member_vectors, title_vectors
from models.two_tower import Content, TwoTower
from train.config import FitConfig
from train.next_title import fit_titles
from train.run import sizes_of

NAME = "titles"
MOVIELENS = Path(__file__).parents[2] / "shared" / "data" / "movielens-latest-small"
RECTOOLS = "rectools[torch]==0.19.*"
MEMBER_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the benchmark."""

    log: str = ""
    """A MovieLens folder (ratings.csv, movies.csv) or a dataset by the contract; default: MovieLens latest-small in the folder
    beside the project, if it exists, else a simulated service."""
    recipe: str = str(RECIPES / "titles.yaml")
    """The recipe of keyart's model."""
    seeds: int = 1
    """How often keyart is trained, each time with another seed; mean and standard deviation are reported."""
    epochs: int = 200
    """Epochs of SASRec and HSTU, at most; they stop when validation no longer improves. 0 leaves both out."""
    peer_seeds: int = 1
    """How often SASRec and HSTU are trained."""
    new: bool = True
    """Whether new titles are measured too, which takes another training."""
    validation: bool = False
    """Evaluate on the validation play instead of the test play, for choosing settings."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_at_least(self, seeds=1, epochs=0, peer_seeds=1)


def bench(config: Config, console: Console) -> list[Row]:
    """Measure every subject on the same log; subjects that are left out are reported on the console, with the reason."""
    recipe = _recipe(config)
    with tempfile.TemporaryDirectory(prefix="keyart-bench-") as folder:
        work = Path(folder)
        log = read_log(_source(config, work, console))
        console.print(f"bench titles: {len(log.member):,} plays of {log.members:,} members, {len(log.titles):,} titles")
        back = 1 if config.validation else 0
        known, _ = log.leave_one_out(1)
        history, target = log.leave_one_out(back)
        rows = _members(recipe, known, history, target, config, console)
        for subject, score in _baselines(known, history).items():
            rows += _timed(subject, "", score, history, target)
        rows += _peers(log, target, work, config, console)
        if config.new:
            rows += _new_titles(recipe, log, config, console)
    return rows


def _recipe(config: Config) -> FitConfig:
    def made(*, settings: FitConfig) -> None:
        """The options of `keyart fit`."""

    return parse("bench titles", made, "fit", ["--config", config.recipe], None)["settings"]


def _source(config: Config, work: Path, console: Console) -> Path:
    if config.log:
        return Path(config.log)
    if MOVIELENS.is_dir():
        console.print("bench titles: MovieLens latest-small")
        return MOVIELENS
    service = SimulateConfig(members=1000, titles=500, people=100, mean_plays=60.0)
    console.print(f"bench titles: {MOVIELENS.name} is missing: simulates a service of {service.members:,} members")
    simulate(work / "service", service)
    return work / "service"


def _baselines(known: TitleLog, history: TitleLog) -> dict[str, Callable[[], np.ndarray]]:
    return {
        "popularity": lambda: popularity(known),
        "item-kNN": lambda: item_knn(known, history),
        "EASE": lambda: ease(known, history),
        "EASE, recent plays": lambda: ease(known, history, recent=RECENT),
    }


def _timed(subject: str, of: str, score: Callable[[], np.ndarray], history: TitleLog, target: np.ndarray) -> list[Row]:
    start = time.perf_counter()
    results = top_titles(score(), history)
    return _rows(subject, of, [ndcg_and_hits(results, target)], [time.perf_counter() - start])


def _rows(subject: str, of: str, results: list[tuple[float, float]], seconds: list[float]) -> list[Row]:
    """Rows of means, with standard deviations where there are several results."""

    def row(figure: str, unit: str, value: float) -> Row:
        return Row(benchmark=NAME, subject=subject, figure=of + figure, unit=unit, value=float(value))

    table = np.array(results)
    rows = []
    for column, name in enumerate((f"NDCG@{TOP_K}", f"HR@{TOP_K}")):
        rows.append(row(name, "mean", table[:, column].mean()))
        if len(results) > 1:
            rows.append(row(name, f"deviation of {len(results)} seeds", table[:, column].std(ddof=1)))
    return [*rows, row("time", "s", float(np.mean(seconds)))] if seconds else rows


def _members(
    recipe: FitConfig, known: TitleLog, history: TitleLog, target: np.ndarray, config: Config, console: Console
) -> list[Row]:
    """keyart's figures, and those of its two parts on their own."""
    combined, towers, next_item, seconds = [], [], [], []
    for seed in range(config.seeds):
        start = time.perf_counter()
        scores = trained(recipe, known, history, seed, console)
        seconds.append(time.perf_counter() - start)
        combined.append(ndcg_and_hits(top_titles(scores.sum(0), history), target))
        towers.append(ndcg_and_hits(top_titles(scores[0], history), target))
        next_item.append(ndcg_and_hits(top_titles(scores[1], history), target))
    rows = _rows(OURS, "", combined, seconds)
    if not recipe.model.next_item.rank:
        return rows
    alone = {"keyart, next-item regression alone": next_item, "keyart, towers alone": towers}
    return rows + [row for subject, results in alone.items() for row in _rows(subject, "", results, [])]


def trained(recipe: FitConfig, known: TitleLog, history: TitleLog, seed: int, console: Console) -> np.ndarray:
    """Learn from `known`; returns float32 (2, U, I): scores of all titles for the members of `history`, by the towers and by
    the next-item regression."""
    vocabularies = vocabularies_of(known)
    catalogue, shard = catalogue_of(known, vocabularies), as_shard(known, vocabularies)

    def to_arrow(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).long()

    content = Content(
        title_genres_IL=to_arrow(catalogue.title_genres),
        title_people_IL=to_arrow(catalogue.title_people),
        title_year_I=torch.from_numpy(catalogue.title_year),
        title_artworks_IL=to_arrow(catalogue.title_artworks),
        artwork_people_AL=to_arrow(catalogue.artwork_people),
        artwork_genres_AL=to_arrow(catalogue.artwork_genres),
        artwork_image_AE=torch.zeros(len(catalogue.artwork_title), 1),
    )
    torch.manual_seed(seed)
    model = TwoTower(recipe.model, sizes_of(vocabularies, ()), content)
    feed = PlaysFeed([shard], plays=recipe.titles.plays, batch=recipe.titles.batch, seed=seed)
    with progress_bar(console) as progress:
        task = progress.add_task(f"bench titles: keyart, seed {seed}", total=recipe.titles.epochs)

        def on_epoch_end(done: int, loss: float, _: TwoTower) -> None:
            progress.update(task, completed=done, description=f"bench titles: keyart, seed {seed}, loss {loss:.3f}")

        model = fit_titles(model, feed, recipe.titles, recipe.optimiser, seed=seed, on_epoch_end=on_epoch_end)
    return _scores(model, history, vocabularies)


@torch.no_grad()
def _scores(model: TwoTower, history: TitleLog, vocabularies: dict) -> np.ndarray:
    shard, rows = as_shard(history, vocabularies), torch.from_numpy(title_rows(history, vocabularies))
    title_IW, width = title_vectors(model, rows), model.config.width
    reach = max(model.config.history.reach, model.config.history.span)
    end = shard.member_plays[1:]
    length = np.minimum(end - shard.member_plays[:-1], reach)
    results = np.zeros((2, history.members, len(rows)), np.float32)
    for begin in range(0, history.members, MEMBER_CHUNK):
        chunk = slice(begin, begin + MEMBER_CHUNK)
        plays = [
            torch.from_numpy(part) for part in shard.padded_runs(end[chunk] - length[chunk], length[chunk]).values()
        ]
        count = torch.from_numpy(length[chunk])
        state = model.states(*plays).learned[torch.arange(len(count)), count]
        member_MW = member_vectors(model, state, plays[0], count)
        next_item_scores = member_MW[:, width:-1] @ title_IW[:, width:-1].T
        results[1, chunk] = next_item_scores.numpy()
        results[0, chunk] = (member_MW @ title_IW.T - next_item_scores).numpy()
    return results


def _peers(log: TitleLog, target: np.ndarray, work: Path, config: Config, console: Console) -> list[Row]:
    """SASRec and HSTU of RecTools, in an environment of their own."""
    if not config.epochs or config.validation:
        console.print(
            "bench titles: SASRec and HSTU left out: epochs=0, or validation=true, which they choose their epoch by"
        )
        return []
    uv = shutil.which("uv")
    if uv is None:
        console.print("bench titles: SASRec and HSTU left out: uv, which makes their environment, is not installed")
        return []
    from_end = log.from_end()
    parts = {"": from_end > 1, "validation_": from_end == 1, "test_": from_end == 0}
    columns = {"member": log.member, "title": log.title, "time": log.time}
    arrays = {f"{part}{name}": values[rows] for part, rows in parts.items() for name, values in columns.items()}
    np.savez(work / "log.npz", **arrays)  # pyright: ignore[reportArgumentType]
    script = Path(__file__).with_name("rectools_models.py")
    arguments = [uv, "run", "--quiet", "--isolated", "--no-project", "--with", RECTOOLS, "python", "-P", str(script)]
    rows: list[Row] = []
    for subject in ("SASRec", "HSTU"):
        results, seconds = [], []
        for seed in range(config.peer_seeds):
            console.print(f"bench titles: {subject} of RecTools, seed {seed}, {config.epochs} epochs; takes minutes")
            try:
                usage = measure(
                    [
                        *arguments,
                        str(work / "log.npz"),
                        str(work / "results.json"),
                        subject,
                        str(config.epochs),
                        str(seed),
                    ]
                )
            except UserError as error:
                console.print(f"bench titles: {subject} left out: {error}")
                break
            lists = np.array(json.loads((work / "results.json").read_text(encoding="utf-8"))["listed"])
            results.append(ndcg_and_hits(lists, target))
            seconds.append(usage.seconds)
        rows += _rows(subject, "", results, seconds) if results else []
    return rows


def _new_titles(recipe: FitConfig, log: TitleLog, config: Config, console: Console) -> list[Row]:
    """Figures of ranking held-out titles among themselves, by content only."""
    year = log.titles["release_year"].to_numpy(float, na_value=0.0)
    count = max(TOP_K + 1, len(year) // 10)
    new = np.zeros(len(year), bool)
    new[np.lexsort((np.arange(len(year)), year))[-count:]] = True
    if not new[log.title].any() or new[log.title].all():
        console.print("bench titles: new titles left out: no plays of new titles, or only plays of new titles")
        return []
    # the target of each member with a held-out play is the last one, from the plays of other titles before it
    at = np.flatnonzero(new[log.title])
    last = at[np.append(np.diff(log.member[at]) != 0, True)]
    ends = np.full(log.members, -1)
    ends[log.member[last]] = last
    before = ~new[log.title] & (np.arange(len(log.member)) < ends[log.member])
    evaluated = np.intersect1d(log.member[before], log.member[last])
    number = np.full(log.members, -1)
    number[evaluated] = np.arange(len(evaluated))
    rows = np.flatnonzero(before & (number[log.member] >= 0))
    history = TitleLog(member=number[log.member[rows]], title=log.title[rows], time=log.time[rows], titles=log.titles)
    target = log.title[ends[evaluated]]
    known = log.take(~new[log.title]).numbered()
    of = "new titles: "
    console.print(f"bench titles: {new.sum():,} new titles, {len(evaluated):,} members who played one")
    results, seconds = [], []
    for seed in range(config.seeds):
        start = time.perf_counter()
        scores = trained(recipe, known, history, seed, console)
        seconds.append(time.perf_counter() - start)
        results.append(ndcg_and_hits(top_titles(scores.sum(0), history, new), target))
    rows_ = _rows(OURS, of, results, seconds)
    rows_ += _rows("same genres", of, [ndcg_and_hits(top_titles(same_genres(history), history, new), target)], [])
    random_ndcg = float((1 / np.log2(np.arange(TOP_K) + 2)).sum() / new.sum())
    return rows_ + _rows("chance", of, [(random_ndcg, TOP_K / float(new.sum()))], [])
