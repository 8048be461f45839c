"""Simulates a streaming service whose truth is known: a dataset by the contract, and the true probabilities.

In: a frozen config. Out: a folder with the tables, the images drawn by `draw_artworks`, and

- `truth/*.parquet`: impression_id, candidates, p_click (probability of a click, were this candidate shown) and
  p_engaged (probability of engaged, were it shown: p_click x p(engaged | click)), aligned with candidates;
- `hidden/*.npz`: tastes and all other inputs of the law that no log has, so that a test can restate the law;
- `simulation.json`: config, the law's constants, counts and true values.

Clicks follow the law of `click_law`. Plays follow taste, popularity and time; an engaged click is a play of its own,
with the artwork it was clicked through. 30 % of the impressions explore uniformly; the rest are shown by an older model
that knows each country's average taste and a noisy idea of every artwork's quality.

Four effects are off by default (`--strengths.own`, `fatigue`, `rated`, `abandoned`), and then change nothing: not a byte of the
dataset. Where they are on, truth includes them, and values are those of an impression after what the log showed before it.

Legend as in `click_law`, with J plays.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from datamodules.contract.tables import CONTRACT_VERSION
from datamodules.simulator.click_law import (
    COLUMN,
    DEVICE_EFFECT,
    DEVICE_FRAMING,
    DEVICES,
    EVENING,
    EVENING_HOUR,
    FIT,
    KNOWN_HOURS,
    OFF_BY_DEFAULT,
    ROW,
    SHARES,
    STEEPNESS,
    TIRED_DAYS,
    EffectSizes,
    SimulatedCatalogue,
)
from datamodules.simulator.draw_artworks import MAX_LOOKS, Picture, draw_artwork
from datamodules.simulator.events import SimulatedLog, draw_log, draw_plays
from datamodules.simulator.population import GENRES, draw_own_tastes, simulate_catalogue, simulate_members
from datamodules.simulator.write_tables import write_tables
from foundation.atomic import atomic_folder
from foundation.fingerprint import fingerprint
from foundation.progress import progress_bar
from foundation.shell import shell_word
from foundation.stored import read_json

MARKER = "simulation.json"
_NEWEST = 0.85  # share of the impressions, in order of time, that `summary["newest"]` leaves out


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Sizes and effect sizes of a simulated service. Everything follows from them and the seed."""

    seed: int = 0
    """Another seed is another service."""
    members: int = 4000
    """Some of them join while the log is being written."""
    titles: int = 120
    """Each has 3 to 6 artworks; some are released while the log is being written."""
    people: int = 24
    """Everyone who can be in a cast; each has a look of their own."""
    days: int = 360
    """Length of the log."""
    mean_plays: float = 32.0
    """Plays per member, those that follow a click not counted; a twentieth of the members has none."""
    mean_impressions: float = 75.0
    """Impressions per member."""
    explore: float = 0.3
    """Share of impressions shown uniformly at random."""
    click_rate: float = 0.09
    """Mean click probability under the uniform policy; the law's base is set to reach it."""
    strengths: EffectSizes = field(default_factory=EffectSizes)
    """The law's effect sizes."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        ranges = {
            "seed": (0, 2**32 - 1),
            "members": (10, 10_000_000),
            "titles": (10, 10_000),
            "people": (len(GENRES), MAX_LOOKS),
            "days": (7, 3650),
            "mean_plays": (0, 1000),
            "mean_impressions": (1, 10_000),
            "explore": (0, 1),
            "click_rate": (0.001, 0.5),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)}: must lie in {low} .. {high}.")


def simulate(out: Path, config: SimulateConfig) -> dict:
    """Write the dataset to `out`, whole or not at all; return counts and true values, also found in simulation.json.

    `values` and `newest` (the newest 15 % alone) hold clicks per impression by policy: uniform, logged, best_per_title
    (the best that is the same for all members) and best. `engaged_values` the same policies' engaged plays, where the
    two best ones still choose by clicks. Raises UserError where `out` holds something else.
    """
    with atomic_folder(out, MARKER) as folder, progress_bar(Console(stderr=True)) as progress:
        # one generator per part: a longer log leaves the catalogue as it is
        parts = np.random.default_rng(config.seed).spawn(7)
        catalogue_rng, member_rng, log_rng, play_rng, own_rng, rated_rng, abandoned_rng = parts
        catalogue = simulate_catalogue(catalogue_rng, titles=config.titles, people=config.people, days=config.days)
        members = simulate_members(member_rng, members=config.members, people=config.people, days=config.days)
        if config.strengths.own:
            members = replace(members, own_MV=draw_own_tastes(own_rng, catalogue, config.members))
        _draw_images(folder, catalogue, config.seed, progress)
        log = draw_log(
            log_rng,
            catalogue,
            members,
            progress,
            days=config.days,
            mean_impressions=config.mean_impressions,
            explore=config.explore,
            click_rate=config.click_rate,
            strengths=config.strengths,
        )
        plays = draw_plays(
            play_rng,
            catalogue,
            members,
            log,
            progress,
            days=config.days,
            mean_plays=config.mean_plays,
            strengths=config.strengths,
            rated_rng=rated_rng,
            abandoned_rng=abandoned_rng,
        )
        write_tables(folder, catalogue, members, log, plays, progress)
        summary = {
            "counts": {
                "members": config.members,
                "titles": config.titles,
                "artworks": len(catalogue.title_A),
                "plays": len(plays.time_J),
                "impressions": len(log.time_N),
                "clicks": int(log.clicked_N.sum()),
                "engaged": int(log.engaged_N.sum()),
            },
            "values": _values(log, log.p_click_NK, catalogue, slice(None)),
            "engaged_values": _values(log, log.p_engaged_NK, catalogue, slice(None)),
            "newest": _values(log, log.p_click_NK, catalogue, slice(int(_NEWEST * len(log.time_N)), None)),
        }
        record = {
            "contract_version": CONTRACT_VERSION,
            "config": _recorded(config),
            "law": {
                "base": log.base,
                "side": dict(zip(DEVICES, DEVICE_FRAMING, strict=True)),
                "place": dict(zip(DEVICES, DEVICE_EFFECT, strict=True)),
                "row": ROW,
                "column": COLUMN,
                "evening": EVENING,
                "evening_hour": EVENING_HOUR,
                **_constants_of(config.strengths),
            },
            **summary,
        }
        (folder / MARKER).write_text(json.dumps(record, indent=2), encoding="utf-8")
    return summary


def simulate_once(out: Path, config: SimulateConfig, console: Console) -> None:
    """`simulate`, unless `out` holds what it would write."""
    record = out / MARKER
    remedy = f"Remove {shell_word(out)}."
    if record.is_file() and read_json(record, remedy).get("config") == json.loads(json.dumps(_recorded(config))):
        console.print(f"simulate: {out} is up to date")
    else:
        simulate(out, config)
        console.print(f"simulate: {out}, seed {config.seed} ({fingerprint(config)})")


def _recorded(config: SimulateConfig) -> dict[str, Any]:
    """A config as JSON values, without effects that are off: the record of a service is the same as before there were any."""
    record = asdict(config)
    strengths = record["strengths"]
    return record | {"strengths": {k: v for k, v in strengths.items() if v or k not in OFF_BY_DEFAULT}}


def _constants_of(strengths: EffectSizes) -> dict[str, float]:
    """The constants of the law that effects which are on have."""
    of_fatigue = {"tired_days": TIRED_DAYS, "known_hours": KNOWN_HOURS} if strengths.fatigue else {}
    of_plays = {"fit": FIT, "steepness": STEEPNESS} if any(getattr(strengths, name) for name in SHARES) else {}
    return of_fatigue | of_plays


def _draw_images(folder: Path, catalogue: SimulatedCatalogue, seed: int, progress: Progress) -> None:
    """All artworks, as JPEG."""
    (folder / "images").mkdir()
    task = progress.add_task("draw artworks", total=len(catalogue.title_A))

    def draw(artwork: int) -> None:
        picture = Picture(
            people=catalogue.shows[artwork],
            mood=GENRES[catalogue.mood_A[artwork]],
            close=bool(catalogue.close_A[artwork] > 0),
            quality=float(catalogue.quality_A[artwork]),
            seed=(seed, artwork),
        )
        draw_artwork(picture).save(folder / "images" / f"a{artwork:05d}.jpg", quality=90)
        progress.advance(task)

    with ThreadPoolExecutor(2) as pool:  # Pillow lets go of the interpreter while it filters and compresses
        list(pool.map(draw, range(len(catalogue.title_A))))


def _values(log: SimulatedLog, p_NK: np.ndarray, catalogue: SimulatedCatalogue, rows: slice) -> dict[str, float]:
    """Expected reward per impression of the policies, which choose by clicks: the mean of `p_NK` at their choices."""
    p_NK, click_NK, candidates_NK = p_NK[rows], log.p_click_NK[rows], log.shown.candidates_NK[rows]
    mask_NK = candidates_NK >= 0
    artworks = len(catalogue.title_A)
    flat = candidates_NK[mask_NK]
    # clicks above the title's mean, not clicks: a late artwork had other impressions than its rivals
    relative_clicks = click_NK / (click_NK.sum(1) / mask_NK.sum(1))[:, None]
    mean_A = np.bincount(flat, relative_clicks[mask_NK], artworks) / np.maximum(
        np.bincount(flat, minlength=artworks), 1
    )
    same = np.where(mask_NK, mean_A[candidates_NK], -1).argmax(1)
    best = click_NK.argmax(1)
    at = np.arange(len(p_NK))
    return {
        "uniform": float((p_NK.sum(1) / mask_NK.sum(1)).mean(dtype=np.float64)),
        "logged": float((p_NK * log.propensities_NK[rows]).sum(1).mean(dtype=np.float64)),
        "best_per_title": float(p_NK[at, same].mean(dtype=np.float64)),
        "best": float(p_NK[at, best].mean(dtype=np.float64)),
    }
