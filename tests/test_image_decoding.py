"""Images as cameras, printers and drawing programs write them, read as people see them, by every command that reads images."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

import keyart
from datamodules.contract.check import check
from datamodules.contract.image_decoding import TURNS, ImageRefused, decode_image, fault_words, strict_image_decoding
from datamodules.shards.artwork_images import load_images
from evaluation.report.markup import thumbnail
from foundation.errors import UserError
from tests.small_dataset import write

HEIGHT, WIDTH = 30, 20


@pytest.fixture
def colours() -> np.ndarray:
    """uint8 (30, 20, 3): smooth in both directions and unlike its turns."""
    y, x = np.mgrid[0:1:30j, 0:1:20j]
    return np.rint(255 * np.stack([x, y, x * y], axis=2)).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def decoded(path: Path) -> np.ndarray:
    with strict_image_decoding():
        return np.asarray(decode_image(path)[0]).astype(int)


def remarks(path: Path) -> tuple[str, ...]:
    with strict_image_decoding():
        return decode_image(path)[1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_a_picture_is_upright(tmp_path: Path, colours: np.ndarray, orientation: int, suffix: str) -> None:
    """A camera stores what its sensor saw, and how it was held."""
    back = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    upright = Image.fromarray(colours)
    turn = TURNS.get(orientation)
    stored = upright if turn is None else upright.transpose(back.get(turn, turn))
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / f"a.{suffix}", stored, exif=exif, quality=100)
    assert decoded(path).shape == (HEIGHT, WIDTH, 3)
    assert np.abs(decoded(path) - colours).mean() < 3


@pytest.mark.parametrize("mode", ["L", "CMYK", "I;16", "RGB"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_is_upright_in_every_mode(tmp_path: Path, colours: np.ndarray, mode: str, compression: str) -> None:
    """Pillow 13 reads memory-mapped ones by their turned size."""
    image = Image.fromarray(colours[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(colours)
    flat = image if mode == "I;16" else image.convert(mode)
    expected = decoded(saved(tmp_path / "flat.tif", flat, compression=compression))
    turned = np.rot90(expected, -1)  # orientation 6: turned clockwise to be seen
    path = saved(tmp_path / "a.tif", flat, compression=compression, exif=_orientation(6))
    assert (decoded(path) == turned).all()


def test_metadata_that_cannot_be_read_turns_nothing(tmp_path: Path, colours: np.ndarray) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = saved(tmp_path / "a.jpg", Image.fromarray(colours), exif=exif, quality=100)
    path.write_bytes(
        path.read_bytes().replace(b"Exif\x00\x00II", b"Exif\x00\x00XX").replace(b"Exif\x00\x00MM", b"Exif\x00\x00XX")
    )
    assert decoded(path).shape == (HEIGHT, WIDTH, 3)
    path = saved(tmp_path / "b.png", Image.fromarray(colours), exif=_orientation(9))
    assert (decoded(path) == colours).all()


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled(tmp_path: Path, colours: np.ndarray, suffix: str) -> None:
    deep = Image.fromarray(colours[..., 0].astype(np.uint16) * 257)
    assert (decoded(saved(tmp_path / f"a.{suffix}", deep)) == colours[..., :1]).all()


def test_a_transparent_value_of_sixteen_bits(tmp_path: Path) -> None:
    values = np.array([[0, 30_000], [65_535, 30_000]], np.uint16)
    path = saved(tmp_path / "a.png", Image.fromarray(values), transparency=65_535)
    assert decoded(path)[..., 0].tolist() == [[0, 117], [0, 117]]


def test_tiff_whose_zero_is_white(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, 65_535]], np.uint16)), tiffinfo={262: 0})
    with Image.open(path) as image:
        assert getattr(image, "tag_v2")[262] == 0  # noqa: B009
    assert decoded(path)[..., 0].tolist() == [[255, 0]]


@pytest.mark.parametrize("behind", [0, 1000])
def test_a_tiff_in_luma_and_chroma(tmp_path: Path, colours: np.ndarray, behind: int) -> None:
    """Other writers have metadata behind the pixels, which Pillow before 13 went on to read as pixels."""
    path = saved(tmp_path / "a.tif", Image.fromarray(colours).convert("YCbCr"))
    path.write_bytes(path.read_bytes() + bytes(behind))
    assert np.abs(decoded(path) - colours).mean() < 2


@pytest.mark.parametrize("tag", [{530: (2, 2)}, {284: 2}])
def test_luma_and_chroma_apart_are_refused(tmp_path: Path, colours: np.ndarray, tag: dict[int, Any]) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(colours).convert("YCbCr"), tiffinfo=tag)
    with pytest.raises(ImageRefused, match="subsampled or in planes: save it as RGB"):
        decoded(path)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_without_a_known_range_are_refused(tmp_path: Path, kind: type) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, 1], [2, 70_000]], kind)))
    with pytest.raises(ImageRefused, match="whose range is not known: save it with 8 bits a channel"):
        decoded(path)
    with pytest.raises(UserError, match=r"a\.tif: cannot be read as an image \(has .*range is not known"):
        load_images([path])


def with_alpha(colours: np.ndarray, alpha: int) -> Image.Image:
    return Image.fromarray(np.dstack([colours, np.full((HEIGHT, WIDTH), alpha, np.uint8)]))


HIDING: dict[str, Callable[[np.ndarray], tuple[Image.Image, dict[str, Any]]]] = {
    "rgba.png": lambda a: (with_alpha(a, 0), {}),
    "rgba.webp": lambda a: (with_alpha(a, 0), {"lossless": True, "exact": True}),
    "rgba.tif": lambda a: (with_alpha(a, 0), {}),
    "grey.png": lambda a: (with_alpha(a, 0).convert("LA"), {}),
    "palette.png": lambda a: (Image.fromarray(a).quantize(256), {"transparency": bytes(256)}),
    "palette.gif": lambda a: (Image.fromarray(np.full_like(a, 200)).quantize(2), {"transparency": 0}),
    "key.png": lambda a: (Image.fromarray(np.full_like(a, 90)), {"transparency": (90, 90, 90)}),
    "grey-key.png": lambda a: (Image.fromarray(np.full_like(a[..., 0], 90)), {"transparency": 90}),
}
"""Pictures that are transparent all over, by file name."""


@pytest.mark.parametrize("name", HIDING)
def test_colours_hidden_under_alpha_are_not_seen(tmp_path: Path, colours: np.ndarray, name: str) -> None:
    image, options = HIDING[name](colours)
    assert (decoded(saved(tmp_path / name, image, **options)) == 0).all()


def test_half_transparent_is_over_black(tmp_path: Path, colours: np.ndarray) -> None:
    path = saved(tmp_path / "a.png", with_alpha(colours, 102))
    assert np.abs(decoded(path) - 0.4 * colours).max() <= 0.5


def linear_profile() -> bytes:
    """An RGB profile that is not sRGB: the same curves, with the primaries turned round (red is stored in the third channel)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_an_embedded_profile_is_applied(tmp_path: Path, colours: np.ndarray, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(colours), icc_profile=linear_profile(), quality=100)
    assert remarks(path) == ()
    assert np.abs(decoded(path) - colours[..., ::-1]).mean() < 3


def test_a_profile_and_alpha(tmp_path: Path, colours: np.ndarray) -> None:
    path = saved(tmp_path / "a.png", with_alpha(colours, 102), icc_profile=linear_profile())
    assert np.abs(decoded(path) - 0.4 * colours[..., ::-1]).max() <= 2


def test_colours_for_printing(tmp_path: Path, colours: np.ndarray) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(colours).convert("CMYK"), quality=100)
    assert np.abs(decoded(path) - colours).mean() < 3


def test_lab_without_a_profile(tmp_path: Path, colours: np.ndarray) -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(colours), srgb, lab, outputMode="LAB")
    assert image is not None
    assert np.abs(decoded(saved(tmp_path / "a.tif", image)) - colours).mean() < 4


@pytest.mark.parametrize("profile", [b"no profile at all" * 20, None])
def test_a_profile_that_cannot_be_applied_is_said(tmp_path: Path, colours: np.ndarray, profile: bytes | None) -> None:
    """Damaged, or of other channels than the image has."""
    grey = Image.fromarray(colours[..., 0])
    path = saved(tmp_path / "a.png", grey, icc_profile=linear_profile() if profile is None else profile)
    assert remarks(path) == ("unusable-profile",)
    assert (decoded(path) == colours[..., :1]).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_read_and_said(tmp_path: Path, colours: np.ndarray, suffix: str) -> None:
    frames = [Image.fromarray(np.full_like(colours, value)) for value in (40, 120, 200)]
    path = saved(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(decoded(path) - 40).max() <= 2
    assert remarks(path) == ("several-frames",)
    # a photo and its preview; before 11.3, Pillow writes a file of more that nobody can read
    small = saved(tmp_path / "mpo.jpg", frames[0], format="MPO", save_all=True, append_images=frames[1:2])
    with Image.open(small) as image:
        assert (image.format, getattr(image, "n_frames")) == ("MPO", 2)  # noqa: B009
    assert remarks(small) == ()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA", "I;16"])
def test_check_embed_and_the_report_read_one_picture(tmp_path: Path, colours: np.ndarray, mode: str) -> None:
    image = Image.fromarray(colours)
    image = Image.fromarray(colours[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    path = saved(tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png"), image, exif=_orientation(6))
    whole = Image.fromarray(decoded(path).astype(np.uint8))
    assert whole.size == (HEIGHT, WIDTH)
    (pixels,) = load_images([path])
    expected = whole.resize((96, 144), Image.Resampling.BILINEAR)
    assert (pixels.transpose(1, 2, 0) == np.asarray(expected)).all()
    page = (thumbnail(path) or "").removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(page))) as shown:
        assert shown.size == (HEIGHT, WIDTH)
        # JPEG halves the resolution of colours, and `P` and `1` are dithered
        assert np.abs(np.asarray(shown.convert("L")).astype(int) - np.asarray(whole.convert("L"))).mean() < 12


def test_a_later_report_shows_the_image_that_replaced_another(tmp_path: Path, colours: np.ndarray) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(colours))
    before = thumbnail(path)
    assert before is not None
    replacing = saved(tmp_path / "b.png", Image.fromarray(colours[::-1].copy()))
    expected = thumbnail(replacing)
    replacing.replace(path)
    assert thumbnail(path) == expected != before
    path.unlink()
    assert thumbnail(path) is None


def test_check_says_what_is_read_in_part(
    tmp_path: Path, colours: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = write(tmp_path)
    names = pq.read_table(dataset / "artworks.parquet")["image"].to_pylist()
    frames = [Image.fromarray(colours), Image.fromarray(colours[::-1].copy())]
    saved(dataset / names[0], frames[0], format="GIF", save_all=True, append_images=frames[1:])
    saved(dataset / names[1], frames[0], format="PNG", icc_profile=b"damaged" * 30)
    report = check(dataset)
    assert report.ok
    assert report.remarks == (
        f"artworks.parquet: 1 image with several frames or pages, of which the first is read (first: {names[0]})",
        f"artworks.parquet: 1 image with a colour profile that cannot be applied: colours are read as sRGB, as web browsers do "
        f"(first: {names[1]})",
    )
    assert keyart.main(["check", str(dataset)]) == 0
    assert "of which the first is read" in " ".join(capfd.readouterr().out.split())


def test_one_limit_of_pixels(tmp_path: Path) -> None:
    """Twice Pillow's limit it raises, above it it warns: both are refused, and the file is named."""
    dataset = write(tmp_path)
    names = pq.read_table(dataset / "artworks.parquet")["image"].to_pylist()
    for name, side in ((names[0], 9_500), (names[1], 14_000)):
        Image.new("1", (side, side)).save(dataset / name, format="PNG")
        with pytest.raises(UserError, match=r"has more than 89 million pixels\)\. Replace the file"):
            load_images([dataset / name])
        assert thumbnail(dataset / name) is None
    (violation,) = check(dataset).violations
    assert violation.rule == "unreadable-image"
    assert violation.count == 2
    assert all("has more than 89 million pixels" in first for first in violation.first)


def test_a_file_cut_or_damaged_anywhere_is_judged_as_by_a_whole_decoding(tmp_path: Path) -> None:
    """`keyart check` decodes a JPEG at an eighth of its size: what is refused, and why, is the same."""
    rng = np.random.default_rng(11)
    picture = Image.fromarray(rng.integers(0, 256, (83, 61, 3), np.uint8)).resize((610, 830))
    judged, refused = 0, 0
    for name, options in (
        ("a.jpg", {}),
        ("b.jpg", {"progressive": True}),
        ("c.jpg", {"subsampling": 0, "exif": _orientation(6)}),
        ("d.png", {}),
        ("e.webp", {}),
    ):
        whole = saved(tmp_path / name, picture, **options).read_bytes()
        for _ in range(24):
            end = int(rng.integers(2, len(whole) + 1))
            damaged = bytearray(whole[:end] if rng.random() < 0.7 else whole)
            for position in rng.integers(0, len(damaged), int(rng.integers(0, 3))):
                damaged[position] = int(rng.integers(0, 256))
            (tmp_path / name).write_bytes(damaged)
            said = [verdict_of(tmp_path / name, at_least) for at_least in (None, 1)]
            assert said[0] == said[1]
            judged, refused = judged + 1, refused + (said[0] != "()")
    assert judged == 120
    assert 60 < refused < 120


def verdict_of(path: Path, at_least: int | None) -> str:
    """The remarks on an image, or why it cannot be used."""
    try:
        with strict_image_decoding():
            return str(decode_image(path, at_least=at_least)[1])
    except Exception as error:
        return fault_words(error, path)
