"""Paths as they are given on the command line: local ones, and `file://` URLs of local ones; every other URL is refused."""

import os
import re
from urllib.parse import urlsplit
from urllib.request import url2pathname

from foundation.errors import UserError
from foundation.shell import shell_word

COPIES = {
    "s3": "aws s3 sync {url} FOLDER",
    "gs": "gcloud storage rsync -r {url} FOLDER",
    "abfs": "azcopy copy {url} FOLDER --recursive",
    "hdfs": "hdfs dfs -get {url} FOLDER",
    "http": "curl -LO {url}",
}
"""How to copy a folder from elsewhere, by the beginning of the URL's scheme: s3a, abfss and https are alike."""


LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes that the name of a file and a whole path may have on Linux and macOS, or fewer."""


def local_path(word: str) -> str:
    """A path as the user wrote it, or that of a `file://` URL; UserError with the command that copies it for other URLs, and for
    a path that no file can have."""
    path = _local_path(word)
    if max(len(os.fsencode(part)) for part in path.split("/")) > LONGEST_NAME or len(path) > LONGEST_PATH:
        raise UserError(f"{path[:60]}...: the name is too long for a file. Name another path.")
    return path


def _local_path(word: str) -> str:
    if not word:
        raise UserError("a path is empty, as an unset variable of a shell is. Name the file or folder.")
    parsed = re.match(
        r"([A-Za-z][\w+.-]+):/", word
    )  # one slash: what is left of a URL after a library read it as a path
    if not parsed:
        return word
    scheme = parsed[1].lower()
    if scheme == "file":
        url = urlsplit(word)
        if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
            raise UserError(f"{word}: names another machine. Give the path itself, or file:///path.")
        return url2pathname(url.path)
    copy = next((command for name, command in COPIES.items() if scheme.startswith(name)), "")
    first = f"Copy an input here first: {copy.format(url=shell_word(word))}" if copy else "Copy an input here first"
    raise UserError(
        f"{word}: keyart reads and writes local paths. {first}; write an output to a local folder and copy it."
    )
