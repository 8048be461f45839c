"""Draws the simulated artworks, so that everything the click law reads is visible in the pixels.

In: the people, the mood, the framing and the quality of the picture. Out: an RGB image of 96 x 144 pixels. Each
person has one look of their own (hair colour and shape, skin, clothes, pattern, glasses, beard), each mood a palette,
a scene behind the people, a frame and a tilt; a close-up fills the picture with a face, a wide picture shows whole
figures; quality is contrast and colour. Background and posture vary with the seed, so that no two artworks are equal.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

WIDTH, HEIGHT = 96, 144
_W, _H = 2 * WIDTH, 2 * HEIGHT  # drawn at twice the size and halved: ImageDraw does not smooth edges

Colour = tuple[int, int, int]

SKINS: tuple[Colour, ...] = ((250, 220, 196), (224, 172, 120), (158, 104, 66), (96, 60, 40))
HAIRS: tuple[Colour, ...] = ((24, 20, 20), (240, 205, 90), (190, 60, 25), (110, 68, 36), (215, 215, 220), (95, 50, 150))
HAIR_SHAPES = ("short", "long", "afro", "bald", "bun")
CLOTHES: tuple[Colour, ...] = (
    (200, 30, 45),
    (30, 80, 190),
    (30, 140, 70),
    (240, 190, 30),
    (130, 45, 150),
    (240, 240, 235),
    (25, 25, 30),
    (20, 170, 180),
)
PATTERNS = ("plain", "stripes", "dots", "jacket")
MAX_LOOKS = len(HAIRS) * len(HAIR_SHAPES) * len(CLOTHES)
"""Past this many people looks would repeat."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The attributes by which a person is recognisable on every artwork."""

    skin: Colour
    hair: Colour
    hair_shape: str
    clothes: Colour
    pattern: str
    glasses: bool
    beard: bool


def look_of(person: int) -> Look:
    """The look of person number `person`; unique below `MAX_LOOKS`.

    Hair colour and shape repeat after 30 people, and each time the clothes have moved on by 3 of 8 colours.
    """
    return Look(
        skin=SKINS[(person * 3 + person // 4) % len(SKINS)],
        hair=HAIRS[person % len(HAIRS)],
        hair_shape=HAIR_SHAPES[(person // len(HAIRS) + person) % len(HAIR_SHAPES)],
        clothes=CLOTHES[(person * 3 + person // 30) % len(CLOTHES)],
        pattern=PATTERNS[(person // 3) % len(PATTERNS)],
        glasses=person % 5 in (1, 3),
        beard=person % 7 in (2, 5),
    )


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The content of one artwork."""

    people: tuple[int, ...]
    """One or two person numbers, left to right."""
    mood: str
    """A key of `MOODS`."""
    close: bool
    """Faces fill the picture; else whole figures stand in the scene."""
    quality: float
    """-1 flat and grey .. 1 full of contrast and colour."""
    seed: tuple[int, ...]
    """Varies background and posture."""


def draw_artwork(picture: Picture) -> Image.Image:
    """Paint one artwork."""
    rng = np.random.default_rng(picture.seed)
    mood = MOODS[picture.mood]
    image = _gradient(mood.top, mood.bottom)
    mood.scene(ImageDraw.Draw(image), rng)
    if mood.blur:
        image = image.filter(ImageFilter.GaussianBlur(mood.blur))
    _draw_people(ImageDraw.Draw(image), picture, rng)
    if mood.tilt:
        image = image.rotate(mood.tilt, Image.Resampling.BILINEAR, fillcolor=mood.bottom)
    image = Image.blend(image, Image.new("RGB", image.size, mood.light), 0.16)
    if mood.grain:
        noise = rng.normal(0.0, mood.grain, (_H // 2, _W // 2, 1)).repeat(2, 0).repeat(2, 1)
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    _draw_frame(ImageDraw.Draw(image), mood, rng)
    image = image.reduce(2)
    image = ImageEnhance.Color(image).enhance(1.0 + 0.35 * picture.quality)
    return ImageEnhance.Contrast(image).enhance(1.0 + 0.28 * picture.quality)


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    mask = Image.linear_gradient("L").resize((_W, _H))
    return Image.composite(Image.new("RGB", (_W, _H), bottom), Image.new("RGB", (_W, _H), top), mask)


def _draw_people(draw: ImageDraw.ImageDraw, picture: Picture, rng: np.random.Generator) -> None:
    """Draw one person in the middle or two side by side, heads in the upper half of a close-up."""
    alone = len(picture.people) == 1
    radius = (50 if alone else 36) if picture.close else 21
    middle = 112 if picture.close else 128
    for column, person in enumerate(picture.people):
        x = _W / 2 + (0 if alone else (column - 0.5) * (92 if picture.close else 80)) + rng.uniform(-7, 7)
        size = radius * rng.uniform(0.93, 1.07)
        _draw_person(draw, look_of(person), x, middle + rng.uniform(-8, 8), size)


def _draw_person(draw: ImageDraw.ImageDraw, look: Look, x: float, y: float, r: float) -> None:
    """A figure whose head of radius `r` is centred at (x, y); it runs out of the picture where it is large."""

    def oval(dx: float, dy: float, rx: float, ry: float, colour: Colour) -> None:
        draw.ellipse((x + (dx - rx) * r, y + (dy - ry) * r, x + (dx + rx) * r, y + (dy + ry) * r), fill=colour)

    def box(x0: float, y0: float, x1: float, y1: float, colour: Colour, corner: float = 0.0) -> None:
        corners = (x + x0 * r, y + y0 * r, x + x1 * r, y + y1 * r)
        draw.rounded_rectangle(corners, corner * r, fill=colour)

    dark: Colour = (30, 22, 22)
    if look.hair_shape == "long":
        box(-1.15, -0.9, 1.15, 1.9, look.hair, 0.6)
    elif look.hair_shape == "afro":
        oval(0, -0.35, 1.5, 1.35, look.hair)
    elif look.hair_shape == "bun":
        oval(0, -1.45, 0.5, 0.45, look.hair)
    box(-0.75, 3.6, -0.1, 6.2, dark)  # legs, seen on wide pictures only
    box(0.1, 3.6, 0.75, 6.2, dark)
    box(-1.7, 1.35, 1.7, 4.2, look.clothes, 0.7)
    _draw_pattern(box, oval, look)
    box(-0.35, 0.7, 0.35, 1.6, look.skin)
    oval(0, 0, 0.85, 1.08, look.skin)
    if look.hair_shape != "bald":
        draw.pieslice((x - 0.95 * r, y - 1.2 * r, x + 0.95 * r, y + 0.55 * r), 180, 360, fill=look.hair)
    if look.beard:
        beard = (70, 45, 30) if look.hair_shape == "bald" else look.hair
        draw.chord((x - 0.8 * r, y - 0.5 * r, x + 0.8 * r, y + 1.12 * r), 15, 165, fill=beard)
    oval(-0.32, 0.0, 0.12, 0.1, dark)
    oval(0.32, 0.0, 0.12, 0.1, dark)
    box(-0.28, 0.5, 0.28, 0.6, (170, 50, 50))
    if look.glasses:
        line = max(2, round(r * 0.09))
        for side in (-0.36, 0.36):
            lens = (x + (side - 0.3) * r, y - 0.26 * r, x + (side + 0.3) * r, y + 0.26 * r)
            draw.ellipse(lens, outline=(10, 10, 10), width=line)


def _draw_pattern(box: Callable[..., None], oval: Callable[..., None], look: Look) -> None:
    """The pattern of the clothes, light on dark and dark on light."""
    ink: Colour = (20, 20, 25) if sum(look.clothes) > 330 else (245, 240, 225)
    if look.pattern == "stripes":
        for y in (1.75, 2.35, 2.95, 3.55):
            box(-1.68, y, 1.68, y + 0.26, ink)
    elif look.pattern == "dots":
        for y in (1.9, 2.6, 3.3):
            for x in (-1.2, -0.6, 0.0, 0.6, 1.2):
                oval(x, y, 0.17, 0.17, ink)
    elif look.pattern == "jacket":
        box(-0.42, 1.4, 0.42, 4.2, ink)


@dataclass(frozen=True, kw_only=True)
class Mood:
    """The look of a genre."""

    top: Colour
    bottom: Colour
    light: Colour
    """Colour of the light on everything, people included."""
    frame: Colour
    border: int
    """Width of the frame at all sides, in drawn pixels."""
    bars: int = 0
    """Height of bars at top and bottom, as films in wide screen have them."""
    tilt: float = 0.0
    """Degrees."""
    blur: float = 0.0
    """Blur of the scene behind the people, in drawn pixels."""
    grain: float = 0.0
    """Standard deviation of the noise, in grey levels."""
    scene: Callable[[ImageDraw.ImageDraw, np.random.Generator], None]
    """Paints the scene behind the people."""


def _draw_frame(draw: ImageDraw.ImageDraw, mood: Mood, rng: np.random.Generator) -> None:
    """The frame, and lines instead of the title's lettering."""
    draw.rectangle((0, 0, _W - 1, _H - 1), outline=mood.frame, width=mood.border)
    if mood.bars:
        draw.rectangle((0, 0, _W, mood.bars), fill=mood.frame)
        draw.rectangle((0, _H - mood.bars, _W, _H), fill=mood.frame)
    length = rng.uniform(40, 66)
    draw.rectangle((_W / 2 - length, _H - 40, _W / 2 + length, _H - 31), fill=(250, 245, 235))
    draw.rectangle((_W / 2 - length * 0.6, _H - 26, _W / 2 + length * 0.6, _H - 21), fill=(250, 245, 235))


def _explosion(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x, y = rng.uniform(40, 150), rng.uniform(60, 140)
    for angle in np.arange(0, 2 * np.pi, np.pi / 9) + rng.uniform(0, 1):
        tip = (x + 320 * np.cos(angle), y + 320 * np.sin(angle))
        side = (x + 320 * np.cos(angle + 0.16), y + 320 * np.sin(angle + 0.16))
        draw.polygon(((x, y), tip, side), fill=(255, 205, 40))
    draw.ellipse((x - 44, y - 44, x + 44, y + 44), fill=(255, 245, 190))


def _confetti(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    colours = ((235, 60, 120), (40, 150, 230), (60, 190, 90), (255, 255, 255))
    for number, (x, y) in enumerate(rng.uniform((0, 0), (_W, _H), (46, 2))):
        draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill=colours[number % 4])


def _window(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x = rng.uniform(5, 70)
    draw.rectangle((x, 30, x + 110, 190), fill=(226, 216, 196))
    draw.rectangle((x + 51, 30, x + 57, 190), fill=(110, 96, 80))
    draw.rectangle((x, 106, x + 110, 112), fill=(110, 96, 80))
    draw.rectangle((0, 205, _W, _H), fill=(120, 100, 82))


def _moonlit_trees(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x = rng.uniform(30, 160)
    draw.ellipse((x - 28, 24, x + 28, 80), fill=(190, 30, 25))
    for trunk in rng.uniform(0, _W, 7):
        draw.polygon(((trunk - 7, _H), (trunk + 7, _H), (trunk + rng.uniform(-10, 10), 10)), fill=(4, 3, 5))
    draw.rectangle((0, 235, _W, _H), fill=(70, 0, 5))


def _hearts(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    draw.ellipse((30, 30, 170, 170), fill=(255, 226, 190))
    for x, y in rng.uniform((0, 0), (_W, _H), (12, 2)):
        s = rng.uniform(9, 17)
        draw.ellipse((x - s, y - s, x, y), fill=(225, 40, 95))
        draw.ellipse((x, y - s, x + s, y), fill=(225, 40, 95))
        draw.polygon(((x - s, y - s / 3), (x + s, y - s / 3), (x, y + s)), fill=(225, 40, 95))


def _stars(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    for x, y in rng.uniform((0, 0), (_W, _H), (90, 2)):
        draw.rectangle((x, y, x + 2, y + 2), fill=(235, 245, 255))
    x, r = rng.uniform(10, 180), rng.uniform(34, 56)
    draw.ellipse((x - r, 55 - r, x + r, 55 + r), fill=(90, 210, 255))
    draw.arc((x - 1.6 * r, 55 - 0.5 * r, x + 1.6 * r, 55 + 0.5 * r), 0, 360, fill=(230, 250, 255), width=4)
    for y in range(200, _H, 14):
        draw.line((0, y, _W, y), fill=(60, 240, 240), width=2)


def _blinds(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    for x in np.arange(rng.uniform(-24, 0), _W, 24):
        draw.rectangle((x, 0, x + 11, _H), fill=(4, 22, 24))


def _desert(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    x = rng.uniform(30, 160)
    draw.ellipse((x - 30, 40, x + 30, 100), fill=(255, 246, 200))
    mesa = rng.uniform(-20, 100)
    draw.polygon(((mesa, 190), (mesa + 18, 100), (mesa + 80, 100), (mesa + 100, 190)), fill=(150, 62, 30))
    draw.rectangle((0, 185, _W, _H), fill=(196, 120, 58))


MOODS: dict[str, Mood] = {
    "Action": Mood(
        top=(225, 70, 10),
        bottom=(90, 15, 5),
        light=(255, 120, 20),
        frame=(15, 10, 10),
        border=4,
        tilt=8,
        scene=_explosion,
    ),
    "Comedy": Mood(
        top=(255, 232, 70),
        bottom=(255, 205, 40),
        light=(255, 240, 160),
        frame=(255, 255, 255),
        border=13,
        scene=_confetti,
    ),
    "Drama": Mood(
        top=(168, 152, 132), bottom=(128, 112, 96), light=(150, 140, 125), frame=(60, 52, 46), border=3, scene=_window
    ),
    "Horror": Mood(
        top=(22, 8, 22),
        bottom=(10, 0, 0),
        light=(30, 0, 10),
        frame=(0, 0, 0),
        border=16,
        grain=14,
        scene=_moonlit_trees,
    ),
    "Romance": Mood(
        top=(255, 190, 190),
        bottom=(240, 120, 150),
        light=(255, 180, 190),
        frame=(255, 225, 225),
        border=7,
        blur=2.5,
        scene=_hearts,
    ),
    "Science Fiction": Mood(
        top=(4, 8, 50), bottom=(20, 30, 120), light=(40, 110, 255), frame=(60, 230, 240), border=3, scene=_stars
    ),
    "Thriller": Mood(
        top=(20, 96, 92),
        bottom=(8, 50, 54),
        light=(20, 110, 100),
        frame=(0, 0, 0),
        border=2,
        bars=26,
        tilt=-5,
        grain=8,
        scene=_blinds,
    ),
    "Western": Mood(
        top=(250, 190, 100), bottom=(230, 150, 70), light=(220, 150, 70), frame=(96, 52, 24), border=9, scene=_desert
    ),
}
"""By the genre's name, as titles spell it."""
