"""`keyart export`: a trained model -> a bundle, refused where ONNX Runtime and torch disagree.

In: the model, its vocabularies and what is known of its run. Out: a bundle folder (see `export.bundle`).
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from datamodules.artworks import HEIGHT, WIDTH
from datamodules.atomic import atomic_folder
from datamodules.catalogue import MOST_GENRES, MOST_PEOPLE
from datamodules.contract import CONTRACT_VERSION, UserError
from datamodules.shards import Shards
from datamodules.vocabulary import Vocabularies, save_vocabularies
from export import example_of_bundle
from export.bundle import (
    ABOUT,
    ARTWORK,
    CARD,
    EXAMPLE,
    EXAMPLE_IN_NODE,
    GOLDEN,
    IMAGES,
    POSTERIOR,
    TITLE,
    TITLES,
    VOCABULARIES,
    Bundle,
    seals_of,
)
from export.card import card_of
from export.contents import contents_of
from export.descriptions import described
from export.explain import CONTEXT, TABLES, Explainer, total
from export.explore_graph import explore_graph
from export.golden import golden_cases, write_golden
from export.graphs import IR_VERSION, OPSET, graphs_of, vector_graphs_of
from export.ids import TOWER_WEIGHTS, with_ids, write_graphs
from export.licences import licences_of
from export.linked import sha256, size_of
from export.score import DRAWS
from export.score import WIDTH as POSTERIOR_WIDTH
from export.thompson import Thompson
from export.triton import write_triton
from export.variants import ship_variants
from export.vector_parity import APART, vectors_apart
from models.history import HOURS_APART
from models.image_encoder import ImageEncoder, Projection
from models.ranking import HISTORY, INPUTS, OUTPUTS, Ranking
from models.serving import CHOOSE_OUTPUTS, Member
from models.two_tower import MEANS, TwoTower
from models.vectors import ArtworkVectors

PARITY = 1e-4
"""Largest difference of a probability between torch and ONNX Runtime that a bundle may have."""
LAYOUT = 5
"""Raised when the bundle's files change their meaning."""


@dataclass(frozen=True)
class Images:
    """How a bundle's artworks were embedded, so that it can embed others."""

    encoder: ImageEncoder
    projection: Projection
    hashes: Sequence[str]
    """Of every artwork's image file, by row from 1: see `datamodules.artworks.content_hashes`."""


def export(
    model: TwoTower,
    vocabularies: Vocabularies,
    out: Path,
    *,
    about: dict[str, Any],
    images: Images | None = None,
    validation: Shards | None = None,
    console: Console | None = None,
) -> Bundle:
    """Write the bundle of a model in evaluation mode; UserError where its graphs do not match torch.

    `about` is what is known of the run, and goes into `bundle.json` as it is. Without `images` the bundle has neither
    artwork.onnx nor title.onnx, and cannot be refreshed. `validation`: the shards the run was trained
    on, by whose validation impressions graphs of fewer bytes are judged: see `export.variants`.
    """
    console = console or Console(stderr=True)
    model = model.eval().cpu()
    ranking = Ranking(model).eval()
    reach = model.config.history.reach
    with atomic_folder(out, marker=ABOUT) as folder:
        save_file(tables_of(ranking), folder / TABLES)
        save_file(posterior_of(model), folder / POSTERIOR)
        graphs = graphs_of(ranking, vocabularies, random_requests(vocabularies, reach, 3, 7, 5, seed=0))
        thompson = Thompson(Bundle(folder, {}), DRAWS, POSTERIOR_WIDTH)
        graphs["explore.onnx"] = with_ids(explore_graph(thompson, OPSET, IR_VERSION), vocabularies)
        write_graphs(graphs, folder)
        artwork = None
        if images is None:
            console.print(f"export: {out}: without {ARTWORK} and {TITLE}: no image encoder was given")
        else:
            artwork = ArtworkVectors(
                model, images.encoder, images.projection, (HEIGHT, WIDTH), (MOST_PEOPLE, MOST_GENRES)
            ).eval()
            towers = vector_graphs_of(artwork, vocabularies)
            write_graphs(towers, folder, TOWER_WEIGHTS)
            graphs |= towers
            (folder / IMAGES).write_text(json.dumps(list(images.hashes)))
        cases = write_golden(golden_cases(partial(_answered, ranking), vocabularies, reach), folder / GOLDEN)
        write_triton(folder)
        for name in (EXAMPLE, EXAMPLE_IN_NODE):
            shutil.copy(Path(example_of_bundle.__file__).with_suffix(Path(name).suffix), folder / name)
        save_vocabularies(vocabularies, folder / VOCABULARIES)
        with torch.no_grad():
            save_file({"title_vector": model.title_vectors(torch.arange(len(model.title_year_I)))}, folder / TITLES)
        record = {
            "contract_version": CONTRACT_VERSION,
            "layout": LAYOUT,
            "opset": OPSET,
            "history_length": reach,
            "looks_back": model.config.history.span,
            "graphs": {name: described(graph) for name, graph in graphs.items()},
            "rows": "an id's row is its place in vocabularies.json plus 1; 0 is the unknown row",
            "files": contents_of(folder),
            "licences": licences_of(about),
            "sha256": seals_of(folder),
            **about,
        }
        (folder / ABOUT).write_text(json.dumps(record, indent=1))
        difference = _parity(ranking, Bundle.open(folder), vocabularies)
        if not difference <= PARITY:
            raise UserError(
                f"{out}: ONNX Runtime and torch differ by {difference:.2g}, more than {PARITY}. Not exported."
            )
        unexplained = _unexplained(Bundle.open(folder), vocabularies)
        if not unexplained <= PARITY:
            raise UserError(
                f"{out}: appeal and the terms it is explained by differ by {unexplained:.2g}, more than {PARITY}. "
                "Not exported."
            )
        golden = example_of_bundle.worst_difference(folder)
        if not golden <= PARITY:
            raise UserError(
                f"{out}: the golden cases differ from torch by {golden:.2g}, more than {PARITY}. Not exported."
            )
        if artwork is not None:
            apart = vectors_apart(artwork, ranking, folder, vocabularies)
            if not apart <= APART:
                raise UserError(
                    f"{out}: probabilities by {ARTWORK} and {TITLE} and by torch differ by {apart:.2g}, more than {APART}. "
                    "Not exported."
                )
            record["vectors"] = {"largest_difference": apart, "bound": APART}
        record["golden"] = {"largest_difference": golden, "bound": PARITY, "cases": cases}
        record["explanations"] = {"largest_difference": unexplained, "bound": PARITY}
        record["parity"] = {"largest_difference": difference, "bound": PARITY, "requests": 256}
        record["precisions"] = ship_variants(folder, vocabularies, reach, golden, validation, console)
        record["files"] = contents_of(folder)
        record["sha256"] = seals_of(folder)
        (folder / CARD).write_text(card_of(record, vocabularies), encoding="utf-8")
        record["sha256"][CARD] = sha256(folder / CARD)
        (folder / ABOUT).write_text(json.dumps(record, indent=1))
    size = size_of(out) / 1e6
    console.print(f"export: {out}, {size:.1f} MB; largest difference from torch on 256 requests {difference:.1e}")
    return Bundle.open(out)


@torch.no_grad()
def _answered(ranking: Ranking, request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By torch, what a serving team is answered."""
    found = ranking(*(torch.from_numpy(request[name]) for name in INPUTS))
    named = dict(zip(OUTPUTS, found, strict=True))
    return {name: named[name].numpy() for name in CHOOSE_OUTPUTS}


def tables_of(ranking: Ranking) -> dict[str, Tensor]:
    """What explanations are made of, by name, float32 and int32: see `export.explain`."""
    model = ranking.model
    taken = ("play_content", "play_mean_image", "play_together", "artwork_vector", "artwork_content", "artwork_bias")
    taken += ("mean_vector", "mean_content", "mean_bias")
    found: dict[str, Tensor] = {name: getattr(ranking, name) for name in taken}
    found |= {name: getattr(model, f"taste_{name}").weight for name in CONTEXT}
    found |= {"artwork_people": model.artwork_people_AL.int(), "person": model.person.weight}
    found |= {"likeness_gain": model.likeness_gain, "taste_weight": model.taste.weight, "taste_bias": model.taste.bias}
    mean = model.recent
    found |= {"hours_apart": torch.tensor([float(HOURS_APART)]), "means": torch.tensor([MEANS])}
    found |= {"recent_bias": mean.band.bias_HS[0], "recent_prior": mean.log_prior.reshape(1)}
    if mean.band.slope_H is not None:
        found["recent_slope"] = mean.band.slope_H
    if model.taste_state is not None:  # what the learned state adds cannot be shared out by play
        found["taste_state"] = model.taste_state.weight
    return {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}


def posterior_of(model: TwoTower) -> dict[str, Tensor]:
    """What exploring draws from: `spread`, a root of the covariance of the weights of appeal's features, (F, F); `own`, the
    standard deviation of each artwork's own bias by row, (A,); float32."""
    rows = torch.arange(len(model.artwork_image_AE))
    own = model.posterior_own_A[torch.where(rows < model.sizes.artworks, rows, 0)]
    return {"spread": model.posterior_FF.clone(), "own": own.contiguous()}


def random_requests(
    vocabularies: Vocabularies, reach: int, n: int, plays: int, candidates: int, seed: int, *, full: bool = False
) -> dict[str, np.ndarray]:
    """Random requests over the whole vocabularies, unknown rows, empty histories and missing values included.

    `full`: every history has all its plays.
    """
    chance = np.random.default_rng(seed)

    def rows(name: str, *shape: int) -> np.ndarray:
        return chance.integers(0, len(vocabularies[name]), shape)

    plays = min(plays, reach)
    return {
        "history_title": rows("titles", n, plays),
        "history_artwork": rows("artworks", n, plays) * (chance.random((n, plays)) < 0.5),
        "history_watched": np.where(chance.random((n, plays)) < 0.2, np.nan, chance.random((n, plays))).astype(
            np.float32
        ),
        "history_time": np.sort(chance.integers(1_600_000_000, 1_700_000_000, (n, plays)), axis=1),
        "history_length": np.full(n, plays) if full else chance.integers(0, plays + 1, n),
        "country": rows("countries", n),
        "device": rows("devices", n),
        "hour": chance.integers(0, 24, n),
        "row": chance.integers(-1, 40, n),
        "column": chance.integers(-1, 40, n),
        "play_count": chance.integers(0, 3000, n),
        "title": rows("titles", n),
        "artworks": rows("artworks", n, candidates),
    }


def _parity(ranking: Ranking, bundle: Bundle, vocabularies: Vocabularies) -> float:
    """Largest difference between torch and ONNX Runtime over random requests of several sizes: of any probability, and of
    any entry of a member's vector, relative to it where it is above 1."""
    worst = 0.0
    for seed, (n, plays, candidates) in enumerate(((1, 1, 1), (55, 3, 40), (100, 4096, 5), (100, 20, 2))):
        request = random_requests(vocabularies, bundle.history_length, n, plays, candidates, seed + 1)
        with torch.no_grad():
            found = ranking(*(torch.from_numpy(request[name]) for name in INPUTS))
            ours: dict[str, Tensor] = dict(zip(OUTPUTS, found, strict=True))
            ours["titles_member"] = Member(ranking)(*(torch.from_numpy(request[name]) for name in HISTORY))[1]
        theirs = bundle.rank(request) | {"titles_member": bundle.members(request)}
        for name in ("click_probability", "engaged_probability", "titles_member"):
            value = ours[name].numpy()
            difference = np.abs(value - theirs[name]) / np.maximum(1, np.abs(value))
            if not np.isfinite(difference).all():
                return float("inf")
            worst = max(worst, float(difference.max()))
    return worst


def _unexplained(bundle: Bundle, vocabularies: Vocabularies) -> float:
    """Largest difference between appeal and the sum of the terms that explain it."""
    request = random_requests(vocabularies, bundle.history_length, 100, 4096, 5, seed=9)
    terms = Explainer(bundle).explain(request)
    return float(np.abs(total(terms) - terms["appeal"]).max())
