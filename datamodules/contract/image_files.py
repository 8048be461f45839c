"""The image files that artworks name: where they lie, whether they decode, and which file is likely meant where one is missing.

In: a dataset folder and the column `image` of artworks.parquet. Out: paths, and `Violation`s of images.
"""

import os
import posixpath
import re
import unicodedata
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from rich.progress import Progress

from datamodules.contract.check_files import Violation, location_of, printable
from datamodules.contract.image_decoding import REMARKS, decode_image, fault_words, strict_image_decoding

OFFENDERS = 3
"""How many of those who break a rule are named."""
IMAGES_PER_BLOCK, IMAGES_PER_TASK = 512, 16
"""Images handed to the threads at a time, which keeps the queue short for a large catalogue, and Ctrl-C quick; and those that one
call of a thread judges: handing over one by one costs as much as decoding a small poster."""
MISSING_REMEDY = (
    "Export the images too and name each by its path in the dataset, as it is spelled there, no URL and no data URI; or leave "
    "these artworks out"
)
IMAGE_RULES = {
    "image-outside": (
        "whose image lies outside of the dataset",
        "Copy the images into the dataset and write their paths relative to it",
    ),
    "missing-image": ("whose image does not exist", MISSING_REMEDY),
    "unreadable-image": ("whose image cannot be decoded", "Export or copy the image again"),
}
"""By rule: the words after "3 artworks", and the remedy."""


class ImageFinding(NamedTuple):
    """What is to be said of an image: the rule that it breaks, or remarks on how it is read."""

    rule: str | None = None
    """One of `IMAGE_RULES`."""
    words: str = ""
    remarks: tuple[str, ...] = ()
    """Names of `image_decoding.REMARKS`."""


def image_file(dataset: Path, image: str) -> Path:
    """The file that a value of `artworks.image` names: its bytes in UTF-8, as the file system keeps them under any locale."""
    return dataset / os.fsdecode(image.encode())


def judge_image(dataset: Path, image: str) -> ImageFinding:
    """What is to be said of the image of a name; call it within `strict_image_decoding`."""
    if Path(image).is_absolute() or posixpath.normpath(image).split("/")[0] == "..":
        return ImageFinding("image-outside", printable(image))
    path = image_file(dataset, image)
    if not os.path.isfile(path):  # which, unlike Path.is_file, holds for names that no file can have
        return ImageFinding("missing-image", printable(image))
    try:
        # at an eighth of its size a JPEG is read to its end as well, and its pixels, which nobody here looks at, cost less
        return ImageFinding(remarks=decode_image(path, at_least=1)[1])
    except Exception as error:  # on broken bytes Pillow's decoders raise whatever they stumble over
        return ImageFinding("unreadable-image", printable(fault_words(error, path)))


def check_images(
    dataset: Path, listed: list[tuple[str, str]], progress: Progress
) -> tuple[list[Violation], tuple[str, ...], frozenset[str]]:
    """Artworks whose image lies outside of the dataset, is missing, or does not decode, remarks on how others are read, and the ids
    of the former; `listed`: (artwork, image)."""
    images = list(dict.fromkeys(image for _, image in listed))
    findings: dict[str, ImageFinding] = {}
    task = progress.add_task("images", total=len(images))
    with strict_image_decoding(), ThreadPoolExecutor() as threads:
        for start in range(0, len(images), IMAGES_PER_BLOCK):
            part = images[start : start + IMAGES_PER_BLOCK]
            few = [part[first : first + IMAGES_PER_TASK] for first in range(0, len(part), IMAGES_PER_TASK)]
            judged = threads.map(lambda images: [judge_image(dataset, image) for image in images], few)
            pairs = zip(part, chain.from_iterable(judged), strict=True)
            findings |= {image: finding for image, finding in pairs if finding != ImageFinding()}
            progress.advance(task, len(part))
    progress.remove_task(task)
    unreadable = frozenset(artwork for artwork, image in listed if image in findings and findings[image].rule)
    return _violations(dataset, listed, findings), image_remarks(findings), unreadable


def image_remarks(findings: Mapping[str, ImageFinding]) -> tuple[str, ...]:
    """A sentence for each kind of remark, with the number of images and the first; `findings` by image."""
    sentences = []
    for remark, words in REMARKS.items():
        remarked = [image for image, finding in findings.items() if remark in finding.remarks]
        if remarked:
            noun = "image" if len(remarked) == 1 else "images"
            sentences.append(f"artworks.parquet: {len(remarked):,} {noun} {words} (first: {printable(remarked[0])})")
    return tuple(sentences)


def _violations(dataset: Path, listed: list[tuple[str, str]], findings: Mapping[str, ImageFinding]) -> list[Violation]:
    violations = []
    for rule, (what, remedy) in IMAGE_RULES.items():
        broken = [(artwork, image) for artwork, image in listed if image in findings and findings[image].rule == rule]
        if not broken:
            continue
        unreadable = rule == "unreadable-image"
        paths = [image_file(dataset, image) for image in dict.fromkeys(image for _, image in broken)]
        first = [(artwork, image, findings[image].words) for artwork, image in broken[:OFFENDERS]]
        if not unreadable:
            likely = likely_files(dataset, [image for _, image, _ in first])
            hints = [f" ({printable(file)} is there)" if file else "" for file in likely]
            first = [(a, image, words + hint) for (a, image, words), hint in zip(first, hints, strict=True)]
        noun = "artwork" if len(broken) == 1 else "artworks"
        of_all = "" if unreadable else f", of {len(listed):,} that name one"
        violations.append(
            Violation(
                # a file that is not there, or not ours, is the table's mistake
                where=location_of(dataset, paths) if unreadable else "artworks.parquet",
                rule=rule,
                what=f"{len(broken):,} {noun} {what}{of_all}",
                count=len(broken),
                first=tuple(f"{printable(artwork)}, {words}" for artwork, _, words in first),
                remedy=remedy,
            )
        )
    return violations


def likely_files(dataset: Path, images: list[str]) -> list[str | None]:
    """For each name that is no file of the dataset, the file that is likely meant, relative to the dataset, or None.

    Tried in turn: the same path in other slashes, case, Unicode form or percent-encoding; the same file name in any folder; the
    same path, then name, with another extension. A name that fits several files gets none.
    """
    by_path: dict[str, set[str]] = {}
    for folder, folders, files in os.walk(dataset):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.lower().endswith(".parquet"):
                relative = Path(folder, name).relative_to(dataset).as_posix()
                for key in _keys(relative):
                    by_path.setdefault(key, set()).add(relative)

    def likely(image: str) -> str | None:
        for key in _keys(image):
            if len(fitting := by_path.get(key, set())) == 1:
                return next(iter(fitting))
        return None

    return [None if image.startswith("data:") else likely(image) for image in images]


def _keys(name: str) -> list[str]:
    """By what a file may be found, most exact first; the kinds of keys cannot be mistaken for each other."""
    path = urlsplit(name).path if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) else name
    folded = unicodedata.normalize("NFC", unquote(path)).replace("\\", "/").strip().casefold().strip("/")
    whole, last = posixpath.normpath(folded), posixpath.basename(folded)
    return [
        f"path {whole}",
        f"name {last}",
        f"stem {posixpath.splitext(whole)[0]}",
        f"last {posixpath.splitext(last)[0]}",
    ]
