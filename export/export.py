"""`keyart export`: a trained model -> a bundle, refused where ONNX Runtime and torch disagree.

In: the model, its vocabularies and the origin of its run. Out: a bundle folder (see `serving.bundle.bundle`).
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from datamodules.contract.tables import CONTRACT_VERSION
from datamodules.shards.artwork_images import HEIGHT, WIDTH
from datamodules.shards.catalogue import MAX_GENRES, MAX_PEOPLE
from datamodules.shards.padding import MAX_PAST
from datamodules.shards.shard import Shards
from datamodules.shards.vocabulary import Vocabularies, save_vocabularies
from export.descriptions import describe_graph
from export.explore_graph import explore_graph
from export.graphs import IR_VERSION, OPSET, build_graphs, build_tower_graphs
from export.parity import TOWER_BOUND, largest_tower_difference, trained_answer
from export.reference import reference_of
from export.variants import ship_variants
from foundation.atomic import atomic_folder
from foundation.context import HOURS, MAX_POSITION, ContextFeature, save_context
from foundation.errors import UserError
from models.content_towers import ArtworkEmbedding, artwork_vectors
from models.ranking import Ranking
from models.retrieval import title_vectors
from models.serving import CHOOSE_OUTPUTS
from models.two_tower import TwoTower
from models.types import Content
from serving.bundle import example as example_of_bundle
from serving.bundle.bundle import (
    ARTWORK_GRAPH,
    CARD,
    EXAMPLE,
    EXAMPLE_IN_NODE,
    EXPLAIN_TABLES,
    GOLDEN,
    IMAGE_HASHES,
    POSTERIOR,
    TITLE_GRAPH,
    TITLE_VECTORS,
    VECTOR_HASHES,
    VOCABULARIES,
    Bundle,
    bundle_checksums,
)
from serving.bundle.card import licence_terms, model_card
from serving.bundle.contents import describe_files
from serving.bundle.encoded_content import encoded_content, save_encoded
from serving.bundle.golden import golden_cases, write_golden
from serving.bundle.golden_graphs import write_graph_cases
from serving.bundle.hard_links import disk_size, sha256
from serving.bundle.ids import TOWER_WEIGHTS, add_id_encoders, write_graphs
from serving.bundle.metadata import BUNDLE_FILE, BUNDLE_VERSION, GOLDEN_BOUND, GRAPHS_BOUND, BundleRecord, RunOrigin
from serving.bundle.requests import RequestLengths, Runs, ranking_inputs
from serving.bundle.seal import write_draft, write_record
from serving.bundle.triton import write_triton
from serving.scoring.explain import total
from serving.scoring.policies import DEFAULT_DRAWS, FLOOR
from serving.scoring.policies import WIDTH as POSTERIOR_WIDTH
from serving.scoring.thompson import Thompson


@dataclass(frozen=True)
class EmbeddedArtworks:
    """The encoder and projections of a bundle's artworks, with which it embeds new ones, and hashes of their sources."""

    embedding: ArtworkEmbedding
    image_hashes: Sequence[str] = ()
    """A hash of every artwork's image file, by row from 1, where images were read: see
    `datamodules.shards.artwork_images.content_hashes`."""
    vector_hashes: Sequence[str] = ()
    """A hash of every artwork's vector, where such were given: see `datamodules.shards.artwork_vectors.vector_hashes`."""


def export(
    model: TwoTower,
    vocabularies: Vocabularies,
    out: Path,
    *,
    origin: RunOrigin,
    images: EmbeddedArtworks | None = None,
    validation: Shards | None = None,
    console: Console | None = None,
) -> Bundle:
    """Write the bundle of a model in evaluation mode; UserError where its graphs do not match torch.

    `origin`: facts about the run, copied into `bundle.json`. `images`: how artworks were embedded; without it the bundle has
    neither artwork.onnx nor title.onnx, and cannot be refreshed. `validation`: the shards the run was trained on, on whose
    validation impressions reduced-precision graphs are measured (see `serving.bundle.variants`) and the reference histograms of
    `keyart drift` are counted; without them the bundle has neither.
    """
    console = console or Console(stderr=True)
    model = model.eval().cpu()
    ranking = Ranking(model).eval()
    reach = model.config.history.reach
    with atomic_folder(out, marker=BUNDLE_FILE) as folder:
        record: BundleRecord = {
            "digest": "",
            "schema_version": BUNDLE_VERSION,
            "contract_version": CONTRACT_VERSION,
            "opset": OPSET,
            "history_length": reach,
            "history_span": model.config.history.span,
            "past_length": MAX_PAST if ranking.reads_past else 0,
            "fatigue_half_life_hours": float(model.own_taste.half_life),
            "graphs": {},
            "rows": "an id's row is its index in vocabularies.json plus 1; 0 is the unknown row",
            "files": {},
            "licences": licence_terms(origin),
            "sha256": {},
            "precisions": [],
            # until they are measured
            "golden": {"largest_difference": float("inf"), "bound": GOLDEN_BOUND, "cases": 0},
            "golden_graphs": {"largest_difference": float("inf"), "bound": GRAPHS_BOUND, "cases": 0},
            "explanations": {"largest_difference": float("inf"), "bound": GOLDEN_BOUND},
            "parity": {"largest_difference": float("inf"), "bound": GOLDEN_BOUND, "requests": 0},
            **origin,
        }
        tables = explanation_tables(ranking) | {"artwork_title": model.artwork_title_A.to(torch.int32)}
        save_file(tables, folder / EXPLAIN_TABLES)
        save_file(posterior_tensors(model), folder / POSTERIOR)
        features = model.sizes.context
        example = random_requests(vocabularies, features, reach, 3, 7, 5, seed=0, full=True)
        graphs = build_graphs(ranking, vocabularies, example)
        thompson = Thompson(Bundle(folder, record), DEFAULT_DRAWS, POSTERIOR_WIDTH, FLOOR)
        graphs["explore.onnx"] = add_id_encoders(explore_graph(thompson, OPSET, IR_VERSION), vocabularies)
        write_graphs(graphs, folder)
        artwork = None
        if images is None:
            console.print(
                f"export: {out}: without {ARTWORK_GRAPH} and {TITLE_GRAPH}: the embedding of artworks is not known"
            )
        else:
            artwork = artwork_vectors(model, images.embedding, (HEIGHT, WIDTH), (MAX_PEOPLE, MAX_GENRES))
            towers = build_tower_graphs(artwork, vocabularies)
            write_graphs(towers, folder, TOWER_WEIGHTS)
            graphs |= towers
            for name, hashes in ((IMAGE_HASHES, images.image_hashes), (VECTOR_HASHES, images.vector_hashes)):
                if hashes:
                    (folder / name).write_text(json.dumps(list(hashes)), encoding="utf-8")
        answer = partial(_torch_answer, model)
        cases = write_golden(
            golden_cases(answer, vocabularies, features, RequestLengths(reach, record["past_length"])), folder / GOLDEN
        )
        record["graphs"] = {name: describe_graph(graph, features) for name, graph in graphs.items()}
        of_graphs = write_graph_cases(folder, record, vocabularies)
        write_triton(folder)
        for name in (EXAMPLE, EXAMPLE_IN_NODE):
            shutil.copy(Path(example_of_bundle.__file__).with_suffix(Path(name).suffix), folder / name)
        save_vocabularies(vocabularies, folder / VOCABULARIES)
        save_encoded(encoded_content(_catalogue_arrays(model)), folder)
        save_context(features, folder)
        with torch.no_grad():
            save_file(
                {"title_vector": title_vectors(model, torch.arange(len(model.title_year_I)))}, folder / TITLE_VECTORS
            )
        write_draft(folder, record)  # the golden cases read it
        bundle = Bundle(folder, record)
        difference = _parity(model, bundle, vocabularies)
        if not difference <= GOLDEN_BOUND:
            raise UserError(
                f"{out}: ONNX Runtime and torch differ by {difference:.2g}, more than {GOLDEN_BOUND}. Not exported."
            )
        unexplained = _explanation_difference(bundle, vocabularies)
        if not unexplained <= GOLDEN_BOUND:
            raise UserError(
                f"{out}: appeal and the terms it is explained by differ by {unexplained:.2g}, more than {GOLDEN_BOUND}. "
                "Not exported."
            )
        golden = example_of_bundle.largest_golden_difference(folder)
        if not golden <= GOLDEN_BOUND:
            raise UserError(
                f"{out}: the golden cases differ from torch by {golden:.2g}, more than {GOLDEN_BOUND}. Not exported."
            )
        if artwork is not None:
            tower_difference = largest_tower_difference(artwork, model, folder, vocabularies)
            if not tower_difference <= TOWER_BOUND:
                raise UserError(
                    f"{out}: probabilities by {ARTWORK_GRAPH} and {TITLE_GRAPH} and by torch differ by "
                    f"{tower_difference:.2g}, more than {TOWER_BOUND}. Not exported."
                )
            record["vectors"] = {"largest_difference": tower_difference, "bound": TOWER_BOUND}
        record["golden"] = {"largest_difference": golden, "bound": GOLDEN_BOUND, "cases": cases}
        record["golden_graphs"] = {
            "largest_difference": example_of_bundle.largest_graph_difference(folder),
            "bound": GRAPHS_BOUND,
            "cases": of_graphs,
        }
        record["explanations"] = {"largest_difference": unexplained, "bound": GOLDEN_BOUND}
        record["parity"] = {"largest_difference": difference, "bound": GOLDEN_BOUND, "requests": 256}
        record["precisions"] = ship_variants(folder, vocabularies, bundle.request_lengths, golden, validation, console)
        reference = None if validation is None else reference_of(bundle, validation)
        if reference is None:
            console.print(f"export: {out}: without reference histograms for keyart drift: no validation impressions")
        else:
            record["reference"] = reference
        record["files"] = describe_files(folder)
        record["sha256"] = bundle_checksums(folder)
        (folder / CARD).write_text(model_card(record, vocabularies), encoding="utf-8")
        record["sha256"][CARD] = sha256(folder / CARD)
        write_record(folder, record)
    size = disk_size(out) / 1e6
    console.print(f"export: {out}, {size:.1f} MB; largest difference from torch on 256 requests {difference:.1e}")
    return Bundle.open(out)


def _catalogue_arrays(model: TwoTower) -> dict[str, np.ndarray]:
    """The content that the model's vectors were made from, by the names of `datamodules.shards.catalogue.Catalogue`."""
    return {
        name.rsplit("_", 1)[0]: model.get_buffer(name).numpy() for name in Content._fields if name != "artwork_image_AE"
    }


def _torch_answer(model: TwoTower, request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By torch, what a serving team is answered."""
    answer = trained_answer(model, request)
    return {name: answer[name] for name in CHOOSE_OUTPUTS}


def explanation_tables(ranking: Ranking) -> dict[str, Tensor]:
    """Vectors of titles and artworks by name, float32, and of whom artworks show, int32: see `serving.bundle.contents`."""
    names = ("play_content", "play_mean_image", "play_coplay", "artwork_vector", "artwork_content", "artwork_bias")
    names += ("mean_vector", "mean_content", "mean_bias")
    tables = {name: ranking.get_buffer(name) for name in names}
    if ranking.reads_past:
        tables["artwork_expected"] = ranking.get_buffer("artwork_expected")
    one_number = [name for name in ("artwork_bias", "mean_bias", "artwork_expected") if name in tables]
    tables |= {name: tables[name].squeeze(1) for name in one_number}
    tables["artwork_people"] = ranking.artwork_people.int()
    return {name: value.contiguous().clone() for name, value in tables.items()}


def posterior_tensors(model: TwoTower) -> dict[str, Tensor]:
    """The posterior that exploring draws from: `spread`, a root of the covariance of the weights of appeal's features, (F, F);
    `own`, the standard deviation of each artwork's own bias by row, (A,); float32."""
    rows = torch.arange(len(model.artwork_image_AE))
    own = model.posterior_own_A[torch.where(rows < model.sizes.artworks, rows, 0)]
    return {"spread": model.posterior_FF.clone(), "own": own.contiguous()}


def random_requests(
    vocabularies: Vocabularies,
    features: Sequence[ContextFeature],
    reach: int,
    n: int,
    plays: int,
    candidates: int,
    seed: int,
    *,
    full: bool = False,
) -> dict[str, np.ndarray]:
    """Random requests over the whole vocabularies, unknown rows, empty histories and missing values included.

    `full`: every history has all its plays.
    """
    rng = np.random.default_rng(seed)

    def rows(name: str, *shape: int) -> np.ndarray:
        return rng.integers(0, len(vocabularies[name]), shape)

    def context(feature: ContextFeature) -> np.ndarray:
        if feature.kind == "category":
            return rows(feature.name, n)
        if feature.kind == "number":
            values = (feature.mean or 0.0) + (feature.std or 1.0) * rng.normal(size=n)
            return np.where(rng.random(n) < 0.1, np.nan, values).astype(np.float32)
        return rng.integers(-1, HOURS if feature.kind == "hour" else MAX_POSITION + 8, n)

    plays, past = min(plays, reach), min(plays, MAX_PAST)
    lengths = np.full(n, plays) if full else rng.integers(0, plays + 1, n)
    total = int(lengths.sum())
    flat_plays = {
        "play_title": rows("titles", total),
        "play_artwork": rows("artworks", total) * (rng.random(total) < 0.5),
        "play_watched": np.where(rng.random(total) < 0.2, np.nan, rng.random(total)).astype(np.float32),
    }
    return ranking_inputs(
        flat_plays,
        Runs.of(lengths.tolist()),
        {feature.name: context(feature) for feature in features},
        rng.integers(0, 3000, n),
        rows("titles", n),
        rows("artworks", n * candidates),
        Runs.of([candidates] * n),
        {
            "past_artwork": rows("artworks", n, past),
            "past_clicked": (rng.random((n, past)) < 0.2).astype(np.float32),
            "past_hours": np.where(rng.random((n, past)) < 0.1, np.nan, 500 * rng.random((n, past))).astype(np.float32),
        },
    )[0]


def _parity(model: TwoTower, bundle: Bundle, vocabularies: Vocabularies) -> float:
    """Largest difference between torch and ONNX Runtime over random requests of several sizes: of any probability, and of
    any entry of a member's vector, relative to it where it is above 1."""
    worst = 0.0
    for seed, (n, plays, candidates) in enumerate(((1, 1, 1), (55, 3, 40), (100, 4096, 5), (100, 20, 2))):
        request = random_requests(vocabularies, bundle.context, bundle.history_length, n, plays, candidates, seed + 1)
        ours, theirs = trained_answer(model, request), bundle.rank(request) | {"title_query": bundle.members(request)}
        for name in ("click_probability", "engaged_probability", "title_query"):
            difference = np.abs(ours[name] - theirs[name]) / np.maximum(1, np.abs(ours[name]))
            if not np.isfinite(difference).all():
                return float("inf")
            worst = max(worst, float(difference.max()))
    return worst


def _explanation_difference(bundle: Bundle, vocabularies: Vocabularies) -> float:
    """Largest difference between appeal, as rank.onnx gives it, and the sum of the terms that explain it."""
    request = random_requests(vocabularies, bundle.context, bundle.history_length, 100, 4096, 5, seed=9)
    return float(np.abs(total(bundle.explain(request)) - bundle.rank(request)["appeal"]).max())
