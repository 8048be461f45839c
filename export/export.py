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
from onnx import ModelProto, TensorProto
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
from models.serving import CHOOSE_OUTPUTS, VECTORS, Member
from models.two_tower import MEANS, TwoTower
from models.vectors import ArtworkVectors

PARITY = 1e-4
"""Largest difference of a probability between torch and ONNX Runtime that a bundle may have."""
LAYOUT = 5
"""Raised when the bundle's files change their meaning."""

DESCRIPTIONS = {
    "history_title": ("int64", "(N, T)", "title rows of the last plays, oldest first, on the right padded with 0"),
    "history_artwork": ("int64", "(N, T)", "artwork rows they were clicked through, 0 where not known"),
    "history_watched": ("float32", "(N, T)", "fraction watched, 0 .. 1, NaN where not known"),
    "history_time": ("int64", "(N, T)", "when they were played, seconds since 1970, UTC; only differences count"),
    "history_length": ("int64", "(N,)", "plays in the history, 0 .. T; T at most `history_length`, at least 1"),
    "country": ("int64", "(N,)", "country row"),
    "device": ("int64", "(N,)", "device row"),
    "hour": ("int64", "(N,)", "hour of the day, UTC, 0 .. 23"),
    "row": ("int64", "(N,)", "row on the page from 0, -1 where not known"),
    "column": ("int64", "(N,)", "column on the page from 0, -1 where not known"),
    "play_count": ("int64", "(N,)", "plays of the member so far, those not among history_* included"),
    "title": ("int64", "(N,)", "title row"),
    "artworks": ("int64", "(N, K)", "candidates: artwork rows, padded with 0"),
    "click_probability": ("float32", "(N, K)", "calibrated probability of a click, were this artwork shown"),
    "engaged_probability": ("float32", "(N, K)", "calibrated probability of a click that leads to a real viewing"),
    "appeal": (
        "float32",
        "(N, K)",
        "what the artwork adds to the click logit above its title's mean artwork, for this member",
    ),
    "affinity": ("float32", "(N,)", "what the title adds to the click logit, for this member"),
    "taste": ("float32", "(N, D)", "meets artwork vectors in appeal: see posterior.safetensors"),
    "liked": ("float32", "(N, 2 D + G)", "meets artworks' image, people and moods in appeal"),
    "member": ("float32", "(N, S)", "what choose.onnx is given of a history"),
    "titles_member": (
        "float32",
        "(N, W)",
        "ranks titles: its dot product with a line of titles.safetensors is that title's score",
    ),
    "played_before": ("bool", "(N,)", "whether the title is among the last `looks_back` plays"),
    "played": ("int64", "(N, P)", "title rows that are left out, padded with 0"),
    "top": ("int64", "(1,)", "how many titles, at least 1"),
    "titles": ("int64", "(N, top)", "title rows, best first; those of a list that has ended are padded with 0"),
    "candidates": ("int64", "(N,)", "how many of `artworks`, the first ones, are candidates"),
    "seed": ("int64", "(N,)", "takes the draw by which is chosen; the same is shown the same"),
    "choice": ("int64", "(N,)", "place of the artwork to show among the candidates, from 0"),
    "propensity": ("float32", "(N,)", "how likely it was to be chosen: to be logged"),
    "policy": ("float32", "(N, K)", "how likely each was"),
    "artwork_vector": ("float32", "(N, D)", "what meets a member's taste in appeal"),
    "artwork_content": (
        "float32",
        "(N, 2 D + G)",
        "meets what was played: image, people, moods",
    ),
    "artwork_bias": ("float32", "(N,)", "what the artwork adds for everybody"),
    "artwork_engaged": ("float32", "(N,)", "the same for viewings"),
    "image": (
        "uint8",
        "(N, H, W, C)",
        "images of one size, any; C: 3, RGB; 1, grey; 4, RGB and an alpha that is left out",
    ),
    "depicts": ("int64", "(N, L)", "people and moods, padded with 0"),
    "image_embedding": ("float32", "(N, E)", "what the image encoder says of the image"),
    "genres": ("int64", "(N, G)", "genres, padded with 0"),
    "cast": ("int64", "(N, P)", "the cast, the first billed first, padded with 0"),
    "release_year": ("float32", "(N,)", "year, NaN where not known"),
    "title_vector": ("float32", "(N, D)", "what meets a member in affinity"),
    "title_content": ("float32", "(N, D + G)", "people and genres"),
    "title_bias": ("float32", "(N,)", "what the title adds for everybody"),
    "title_engaged": ("float32", "(N, D + 1)", "the same for viewings"),
    "play_token": ("float32", "(N, D)", "what a play of the title says to the learned state"),
    "play_content": ("float32", "(N, D + G)", "the same to the mean of what was played: people and genres"),
    "found_by": ("float32", "(N, W)", "what titles_member meets: a line of titles.safetensors"),
    "scores": ("float32", "(N, top)", "their scores, of which only differences count; -inf where a list has ended"),
}


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
            "graphs": {name: _described(graph) for name, graph in graphs.items()},
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


def _described(graph: ModelProto) -> dict[str, list[dict[str, str]]]:
    """Every input and output of a graph: name, type, shape and meaning."""
    found = {}
    for side, parts in (("inputs", graph.graph.input), ("outputs", graph.graph.output)):
        rows = []
        for part in parts:
            dtype, shape, meaning = DESCRIPTIONS[part.name]
            if part.name in VECTORS and side == "inputs":  # of each candidate
                shape = shape.replace("(N,)", "(N, K)") if shape == "(N,)" else shape.replace("(N,", "(N, K,")
            if part.type.tensor_type.elem_type == TensorProto.STRING:
                dtype, meaning = "string", meaning.replace("row", "id").replace("padded with 0", 'padded with ""')
            rows.append({"name": part.name, "dtype": dtype, "shape": shape, "meaning": meaning})
        found[side] = rows
    return found


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
