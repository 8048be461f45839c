"""Do artwork.onnx and title.onnx say of what is new what torch says of it? Where they meet: in probabilities.

Images of several sizes go through both, and random members are shown them. Statistics of an image have hard edges (a pixel is of
one hue or of the next), so that the last bit of a float can move an embedding by one pixel's share: what may differ is stated
of what is predicted, as everywhere.
"""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from PIL import Image

from datamodules.vocabulary import Vocabularies
from export.bundle import ARTWORK, TITLE
from export.golden import NOBODY
from models.parts import Artworks, Context, States
from models.ranking import Ranking
from models.vectors import ARTWORK_OUTPUTS, TITLE_OUTPUTS, ArtworkVectors, TitleVectors

SIZES = ((1, 1, 3), (144, 96, 3), (500, 333, 3), (37, 300, 1), (720, 1280, 4))
"""Height, width and channels of the images."""
MEMBERS = 20
APART = 5e-3
"""What a probability may differ by, of an artwork whose image passed through artwork.onnx."""


def random_image(chance: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """uint8 (H, W, C): areas of colour with some noise."""
    areas = chance.integers(0, 256, (min(6, height), min(4, width), channels), dtype=np.uint8)
    planes = [Image.fromarray(areas[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)]
    noise = chance.integers(-20, 21, (height, width, channels))
    return np.clip(np.stack([np.asarray(plane) for plane in planes], axis=-1) + noise, 0, 255).astype(np.uint8)


@torch.no_grad()
def vectors_apart(artwork: ArtworkVectors, ranking: Ranking, folder: Path, vocabularies: Vocabularies) -> float:
    """Largest difference of a click or engaged probability of random members that are shown images by artwork.onnx or by
    torch, and, relative to 1 where above, of an entry of a title's vectors by title.onnx."""
    chance = np.random.default_rng(11)
    of_artwork, of_title = (ort.InferenceSession(folder / name) for name in (ARTWORK, TITLE))
    worst = 0.0
    for height, width, channels in SIZES:
        image = random_image(chance, height, width, channels)[None]
        words = [_words(chance, vocabularies, name) for name in ("people", "genres")]
        depicts = np.concatenate(words, axis=1)
        theirs = of_artwork.run(list(ARTWORK_OUTPUTS), {"image": image, "depicts": depicts})
        rgb = torch.from_numpy(np.broadcast_to(image[..., :3], (*image.shape[:3], 3)).copy())
        ours = artwork(rgb, *(_rows(depicts, vocabularies, name) for name in ("people", "genres")))
        sides = [_shown(ranking, Artworks(*(torch.as_tensor(part) for part in side[:4]))) for side in (theirs, ours)]
        worst = max(worst, *(float((one - other).abs().max()) for one, other in zip(*sides, strict=True)))
    year = np.array([1987.0, np.nan], np.float32)
    cast, genres = (np.repeat(_words(chance, vocabularies, name), 2, axis=0) for name in ("people", "genres"))
    theirs = of_title.run(list(TITLE_OUTPUTS), {"genres": genres, "cast": cast, "release_year": year})
    rows = [_rows(values, vocabularies, name) for values, name in ((genres, "genres"), (cast, "people"))]
    ours = TitleVectors(artwork.model, artwork.most)(*rows, torch.from_numpy(year))
    for one, other in zip(ours, theirs, strict=True):
        apart = np.abs(one.numpy() - other) / np.maximum(1, np.abs(one.numpy()))
        worst = max(worst, float(apart.max()))
    return worst


def _words(chance: np.random.Generator, vocabularies: Vocabularies, name: str) -> np.ndarray:
    """Ten words of a vocabulary, more than are counted of one, with unknown ones and padding among them; (1, 10)."""
    values = [*vocabularies[name].values, NOBODY, ""]
    return np.array([[values[place] for place in chance.integers(0, len(values), 10)]], object)


def _rows(words: np.ndarray, vocabularies: Vocabularies, name: str) -> torch.Tensor:
    place = {value: row for row, value in enumerate(vocabularies[name].values, start=1)}
    return torch.tensor([[place.get(word, 0) for word in row] for row in words.tolist()])


def _shown(ranking: Ranking, artworks: Artworks) -> tuple[torch.Tensor, ...]:
    """Click and engaged probabilities of one artwork for some random members."""
    model, chance = ranking.model, torch.Generator().manual_seed(5)
    recent = torch.randn(MEMBERS, sum(model.parts_of_content()), generator=chance) / 5
    together = torch.randn(MEMBERS, model.config.coplay.rank, generator=chance)
    learned = torch.randn(MEMBERS, model.config.width, generator=chance)
    nowhere = torch.zeros(MEMBERS, dtype=torch.int64)
    shown = Artworks(*(part.expand(MEMBERS, *part.shape[1:]).unsqueeze(1) for part in artworks))
    again = torch.zeros(MEMBERS, dtype=torch.bool)
    found = ranking.ranked(States(learned, recent, together), Context(*[nowhere] * 6), nowhere, shown, again)
    return found[:2]
