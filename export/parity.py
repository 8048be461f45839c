"""Parity of bundle and model on every impression of a period, by two implementations that share no code.

One is the training's: shards, members encoded once for all their impressions, torch. The other is the serving
team's: raw tables, one request per impression, ONNX Runtime. Their scores are compared.
"""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.dataset as pads
import torch
from PIL import Image

from datamodules.feed.impression_feed import Feed
from datamodules.shards.shard import TEST, Shards
from datamodules.shards.vocabulary import Vocabularies
from foundation.errors import UserError
from models.content_towers import ARTWORK_OUTPUTS, TITLE_OUTPUTS, ArtworkVectors, TitleVectors
from models.context import zero_context
from models.history import given_plays, is_rewatch
from models.own_taste import Past
from models.ranking import OUTPUTS
from models.retrieval import member_vectors
from models.two_tower import TwoTower
from models.types import ArtworkEncoding, States, TitleEncoding
from serving.bundle.bundle import ARTWORK_GRAPH, TITLE_GRAPH
from serving.bundle.golden import UNKNOWN_ID


@torch.no_grad()
def compare(model: TwoTower, shards: Path, scores: Path) -> float:
    """Largest absolute difference of a click probability over the shards' test period; scores must cover it."""
    table = pads.dataset(sorted(scores.glob("*.parquet"))).to_table(columns=["impression_id", "click_probability"])
    listed = table["click_probability"].combine_chunks()
    start, flat = listed.offsets.to_numpy(), listed.values.to_numpy()
    ids = np.array(table["impression_id"].cast(pa.binary()).to_pylist(), dtype="S")
    order = np.argsort(ids)
    ids, start, width = ids[order], start[:-1][order], np.diff(start)[order]
    opened = Shards.open(shards)
    feed = Feed(opened.shards, TEST, reach=model.config.history.reach, impressions=4096, shuffle=False, candidates=True)
    names = [shard.ids() for shard in opened.shards]
    worst = 0.0
    for batch in feed:
        expected_ids = names[batch.shard][batch.index.numpy()]
        index = np.searchsorted(ids, expected_ids).clip(max=len(ids) - 1)
        if not (ids[index] == expected_ids).all():
            raise UserError(f"{scores}: lacks impressions of the test period. Score the dataset again.")
        plays = (batch.play_title, batch.play_artwork, batch.play_watched)
        past = Past(batch.past_artwork, batch.past_clicked, batch.past_hours)
        given = (batch.member, batch.position, batch.context, batch.title, batch.artworks)
        terms = model(*plays, *given, past=past)
        ours = model.probabilities(terms)[0].numpy()
        column = np.arange(ours.shape[1])
        mask = column < width[index][:, None]
        theirs = flat[np.where(mask, start[index][:, None] + column, 0)]
        worst = max(worst, float(np.abs(np.where(mask, ours - theirs, 0.0)).max()))
    return worst


@torch.no_grad()
def trained_answer(model: TwoTower, request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`models.ranking.OUTPUTS` and `title_query` of requests over rows, by the towers as they are trained.

    What the title's artworks share is the mean of their appeal, of each by itself.
    """
    given = {name: torch.from_numpy(values) for name, values in request.items()}
    length_N, title_N = given_plays(given["history_length"], given["history_title"]), given["title"]
    member_N = torch.arange(len(title_N))
    history = (given["history_title"], given["history_artwork"], given["history_watched"])
    states = model.states(*history)
    state = model.state_at(states, member_N, length_N)
    rewatch_N = is_rewatch(history[0], length_N, title_N, model.config.history.span)
    past = None
    if model.own_taste.is_read:
        past = Past(given["past_artwork"], given["past_clicked"], given["past_hours"])
        state = state._replace(evidence=model.evidence(past))
    terms = model.rank(state, given, title_N, given["artworks"], rewatch_N, past=past)
    siblings_NL = model.title_artworks_IL[title_N]
    mask_NL = (siblings_NL > 0).float()
    shared_NL = model.rank(state, given, title_N, siblings_NL, rewatch_N).appeal_NK * mask_NL
    shared_N = shared_NL.sum(1) / mask_NL.sum(1).clamp(min=1)
    parts = (*model.probabilities(terms), terms.appeal_NK - shared_N[:, None], terms.affinity_N + shared_N)
    queries = model.appeal_queries(state, given)[:2]
    parts = (*parts, *queries, member_vectors(model, state.learned, history[0], length_N))
    return {name: values.numpy() for name, values in zip((*OUTPUTS, "title_query"), parts, strict=True)}


IMAGE_SIZES = ((1, 1, 3), (144, 96, 3), (500, 333, 3), (37, 300, 1), (720, 1280, 4))
"""Height, width and channels of the images."""


MEMBERS = 20


TOWER_BOUND = 5e-3
"""Largest difference of a probability for an artwork whose image passed through artwork.onnx."""


def random_image(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """uint8 (H, W, C): areas of colour with some noise."""
    areas = rng.integers(0, 256, (min(6, height), min(4, width), channels), dtype=np.uint8)
    planes = [Image.fromarray(areas[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)]
    noise = rng.integers(-20, 21, (height, width, channels))
    return np.clip(np.stack([np.asarray(plane) for plane in planes], axis=-1) + noise, 0, 255).astype(np.uint8)


@torch.no_grad()
def largest_tower_difference(
    artwork: ArtworkVectors, model: TwoTower, folder: Path, vocabularies: Vocabularies
) -> float:
    """Largest difference of a click or engaged probability of random members that are shown images by artwork.onnx or by
    torch, and, relative to 1 where above, of an entry of a title's vectors by title.onnx."""
    rng = np.random.default_rng(11)
    artwork_session, title_session = (ort.InferenceSession(folder / name) for name in (ARTWORK_GRAPH, TITLE_GRAPH))
    worst = 0.0
    for height, width, channels in IMAGE_SIZES:
        image = random_image(rng, height, width, channels)[None]
        given: dict[str, np.ndarray] = {"image": image, "embedding": _random_vector(rng, artwork)}
        given = {name: values for name, values in given.items() if name in artwork.inputs}
        ids = [_random_ids(rng, vocabularies, name) for name in ("people", "genres")]
        depicts = np.concatenate(ids, axis=1)
        theirs = artwork_session.run(list(ARTWORK_OUTPUTS), given | {"depicts": depicts})
        if "image" in given:
            alpha = image[..., 3:] / np.float32(255) if channels == 4 else np.float32(1)
            given["image"] = np.broadcast_to(
                np.rint(image[..., :3] * alpha).astype(np.uint8), (*image.shape[:3], 3)
            ).copy()
        ours = artwork(
            *map(torch.from_numpy, given.values()),
            *(_rows(depicts, vocabularies, name) for name in ("people", "genres")),
        )
        sides = [
            _shown(model, ArtworkEncoding(*(torch.as_tensor(part) for part in side[:4]))) for side in (theirs, ours)
        ]
        worst = max(worst, *(float((expected - actual).abs().max()) for expected, actual in zip(*sides, strict=True)))
    year = np.array([1987.0, np.nan], np.float32)
    cast, genres = (np.repeat(_random_ids(rng, vocabularies, name), 2, axis=0) for name in ("people", "genres"))
    theirs = title_session.run(list(TITLE_OUTPUTS), {"genres": genres, "cast": cast, "release_year": year})
    rows = [_rows(values, vocabularies, name) for values, name in ((genres, "genres"), (cast, "people"))]
    ours = TitleVectors(artwork.model, artwork.limit)(*rows, torch.from_numpy(year))
    for expected, actual in zip(ours, theirs, strict=True):
        apart = np.abs(expected.numpy() - actual) / np.maximum(1, np.abs(expected.numpy()))
        worst = max(worst, float(apart.max()))
    return worst


def _random_vector(rng: np.random.Generator, artwork: ArtworkVectors) -> np.ndarray:
    """A vector about as far from the mean as a catalogue's are, by their projection; float32 (1, V)."""
    if artwork.vectors is None:
        return np.zeros((1, 0), np.float32)
    centre, turn = (artwork.vectors.get_buffer(f"{name}_0").numpy() for name in ("centre", "turn"))
    weight = np.linalg.norm(turn, axis=1)
    spread = 1 / np.maximum(weight, weight.mean())
    return (centre + spread * rng.standard_normal(centre.shape)).astype(np.float32)[None]


def _random_ids(rng: np.random.Generator, vocabularies: Vocabularies, name: str) -> np.ndarray:
    """Ten words of a vocabulary, more than are counted of a list, with unknown ones and padding among them; (1, 10)."""
    values = [*vocabularies[name].values, UNKNOWN_ID, ""]
    return np.array([[values[index] for index in rng.integers(0, len(values), 10)]], object)


def _rows(ids: np.ndarray, vocabularies: Vocabularies, name: str) -> torch.Tensor:
    row_of = {value: row for row, value in enumerate(vocabularies[name].values, start=1)}
    return torch.tensor([[row_of.get(word, 0) for word in row] for row in ids.tolist()])


def _shown(model: TwoTower, artworks: ArtworkEncoding) -> tuple[torch.Tensor, ...]:
    """Click and engaged probabilities of one artwork for some random members."""
    generator = torch.Generator().manual_seed(5)
    recent = torch.randn(MEMBERS, sum(model.content_widths()), generator=generator) / 5
    coplay = torch.randn(MEMBERS, model.config.coplay.rank, generator=generator)
    learned = torch.randn(MEMBERS, model.config.width, generator=generator)
    zeros_N, context = torch.zeros(MEMBERS, dtype=torch.int64), zero_context(model.sizes.context, MEMBERS)
    shown = ArtworkEncoding(*(part.expand(MEMBERS, *part.shape[1:]).unsqueeze(1) for part in artworks))
    title = TitleEncoding(*(part.expand(MEMBERS, *part.shape[1:]) for part in model.titles(zeros_N[:1])))
    rewatch = torch.zeros(MEMBERS, dtype=torch.bool)
    return model.probabilities(
        model.rank_vectors(States(learned, recent, coplay, learned[:, :0]), context, title, shown, rewatch)
    )
