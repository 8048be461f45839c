"""Image files -> pixels as people see them: the one reader of check, embed, refresh and the report.

In: a file. Out: an RGB picture of 8 bits a channel: turned as its EXIF says, its colours brought from the embedded ICC profile to
sRGB, 16 bits scaled to 8, transparent parts over black, the first frame of an animation. What has no such reading is refused.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, UnidentifiedImageError

BACKGROUND = (0, 0, 0)
"""RGB that shows through transparent parts: black, as the page of a streaming service; `artwork.onnx` does the same."""
MAX_MEGAPIXELS = 89
"""Larger images are refused: what Pillow decodes without a warning, a third of a gigabyte of pixels."""
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Modes of one channel with more than 8 bits."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the EXIF orientation, what makes the picture upright (CIPA DC-008, Exif 2.32, section 4.6.4)."""
SPACE_OF_MODE = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
"""By Pillow's mode, the colour space that a profile of such an image names."""
REMARKS = {
    "several-frames": "with several frames or pages, of which the first is read",
    "unusable-profile": "with a colour profile that cannot be applied: colours are read as sRGB, as web browsers do",
}
"""By name, what `decode_image` may say of an image that it read; the words after "3 images"."""


class ImageRefused(ValueError):
    """An image that decodes, but has no reading as colours of 8 bits; the message completes "the image ..."."""


@contextmanager
def strict_image_decoding() -> Iterator[None]:
    """Pillow warns of doubtful metadata, which nobody here reads, and of images too large to decode on most machines: those are
    faults inside the block. Warnings are a process's, so that threads are started inside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def fault_words(error: Exception, path: Path) -> str:
    """One line on why an image cannot be used, from what `decode_image` raised."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"{path.name} has more than {MAX_MEGAPIXELS} million pixels"
    if isinstance(error, UnidentifiedImageError):
        return f"{path.name} has no format of images that can be read"
    lines = str(error).replace(str(path), path.name).splitlines()
    return lines[0] if lines else type(error).__name__


def decode_image(path: Path, *, at_least: int | None = None) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture in RGB, and names of `REMARKS` on it; call it within `strict_image_decoding`.

    `at_least`: a length of both sides in pixels that suffices, which lets a JPEG be decoded at a fraction of its size. Raises
    `ImageRefused` where an image has no reading as 8-bit RGB, and whatever Pillow's decoders stumble over on broken bytes.
    """
    # given a path, Pillow maps the pixels of some TIFF files into memory, and gets those wrong that are to be turned
    with path.open("rb") as file, Image.open(file) as image:
        # a photo's preview, which cameras append, is no frame
        remarks = ["several-frames"] if image.format != "MPO" and getattr(image, "n_frames", 1) > 1 else []
        if at_least is not None:
            image.draft(
                image.mode, (at_least, at_least)
            )  # in its own mode: what is CMYK stays so until its profile is read
        if image.format == "TIFF":
            _read_luma_and_chroma(image)
        image.load()
        colours, alpha = _without_alpha(image)
        if colours.mode in DEEP_GREY:
            colours = Image.fromarray(_eight_bits(image))
        if colours.mode == "F":
            raise ImageRefused("has floating-point values, whose range is not known: save it with 8 bits a channel")
        picture, profile_applied = _in_srgb(colours, image.info.get("icc_profile"))
        if not profile_applied:
            remarks.append("unusable-profile")
        if alpha is not None:
            picture = Image.composite(picture, Image.new("RGB", picture.size, BACKGROUND), alpha)
        turn = TURNS.get(_orientation(image))
    return picture if turn is None else picture.transpose(turn), tuple(remarks)


def _read_luma_and_chroma(image: ImageFile.ImageFile) -> None:
    """Have uncompressed YCbCr of a TIFF read as it is stored, which Pillow before 13 reads as 4 bytes a pixel: wrong colours, or
    "truncated". Refused where Pillow would mix up its samples: chroma of fewer pixels (TIFF 6.0, section 21) or in planes."""
    tags = getattr(image, "tag_v2")  # noqa: B009
    if tags.get(262) != 6 or any(tile.codec_name != "raw" for tile in image.tile):  # PhotometricInterpretation: YCbCr
        return
    if tuple(tags.get(530, (2, 2))) != (1, 1) or tags.get(284, 1) != 1:  # YCbCrSubSampling, PlanarConfiguration
        raise ImageRefused("has uncompressed YCbCr that is subsampled or in planes: save it as RGB")
    image._mode = "YCbCr"
    image.tile = [tile._replace(args=("YCbCr", *tile.args[1:])) for tile in image.tile if isinstance(tile.args, tuple)]


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or metadata cannot be read, as web browsers do."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # on broken bytes Pillow's readers of metadata raise whatever they stumble over
        return 1


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours as they are stored, and the alpha of images that have one, of 8 bits."""
    if image.mode in DEEP_GREY and "transparency" in image.info:  # the one value that is transparent
        see_through = np.asarray(image) == image.info["transparency"]
        return image, Image.fromarray(np.where(see_through, 0, 255).astype(np.uint8))
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        grey = image.mode in ("1", "L", "LA", "La")
        whole = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return whole.getchannel(0) if grey else whole.convert("RGB"), whole.getchannel("A")
    return image, None


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Grey values of more than 8 bits, scaled to uint8 (H, W); refused where their range is not known."""
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {}) if image.format in ("TIFF", "MPO") else {}
    bits = tags.get(258, (16,))[0]  # BitsPerSample
    largest = 2**bits - 1
    if bits > 16 or values.min() < 0 or values.max() > largest:
        raise ImageRefused(f"has values of {bits} bits, whose range is not known: save it with 8 bits a channel")
    if tags.get(262) == 0:  # PhotometricInterpretation: WhiteIsZero, which Pillow applies up to 8 bits
        values = largest - values
    return np.rint(values * (255 / largest)).astype(np.uint8)


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bool]:
    """RGB, by the embedded profile where there is one, and whether it could be applied."""
    if image.mode not in SPACE_OF_MODE:
        image = image.convert("RGB")
    if profile:
        try:
            converted = ImageCms.applyTransform(image, _transform(profile, image.mode))
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            return image.convert("RGB"), False
        assert converted is not None, "not in place"
        return converted, True
    if image.mode == "LAB":
        return _in_srgb(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())
    return image if image.mode == "RGB" else image.convert("RGB"), True


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """From a profile's colours to sRGB; ValueError where its channels are others than the image's."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()  # pyright: ignore[reportAttributeAccessIssue]
    if space != SPACE_OF_MODE[mode]:
        raise ValueError(f"a profile of {space} for {mode}")
    target = ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(source, target, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
