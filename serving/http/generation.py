"""One bundle as the service holds it: loaded whole, so that no answer mixes two models, and replaced whole.

A request is read, ranked, explained and answered by the generation that was current when its body had arrived.
"""

import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from serving.bundle.bundle import Bundle
from serving.bundle.metadata import Reference
from serving.bundle.steady import read_steadily
from serving.http.answers import ArtworkRanker
from serving.http.config import ServeConfig
from serving.http.interface import example, openapi, page
from serving.http.requests import RequestReader


@dataclass(frozen=True)
class Generation:
    """A bundle's reader and ranker, and what the service says of it."""

    digest: str
    reader: RequestReader
    ranker: ArtworkRanker
    info: dict[str, str]
    """Digest, fingerprint and keyart's version."""
    reference: Reference | None
    """What the bundle was asked in validation, where it is recorded."""
    openapi: str
    docs: str
    curl: str
    """A command line to try the service."""

    @classmethod
    def load(cls, folder: Path, config: ServeConfig) -> "Generation":
        """Read all of a bundle and answer its example once; UserError where that cannot be. While another process replaces it,
        the old or the new one is read."""
        # one thread: the event loop has the other core, and threads that wait for work by spinning take it away
        return read_steadily(folder, lambda: cls._of(Bundle.open(folder, threads=1), config))

    @classmethod
    def _of(cls, bundle: Bundle, config: ServeConfig) -> "Generation":
        ranker = ArtworkRanker(bundle, config.draws)
        reader = RequestReader(bundle, config.draws, config.sticky_seconds)
        spec = openapi(bundle, version("keyart"), secured=bool(config.token))
        curl = example_command(bundle, config)
        info = {
            "bundle": bundle.digest,
            "fingerprint": str(bundle.metadata.get("fingerprint", "")),
            "version": version("keyart"),
        }
        ranker.answer(reader.read(json.dumps(example(bundle)).encode(), time.time())[0])
        reference = bundle.metadata.get("reference")
        return cls(bundle.digest, reader, ranker, info, reference, json.dumps(spec), page(spec, curl), curl)


def example_command(bundle: Bundle, config: ServeConfig) -> str:
    """A command line to try the service."""
    body = json.dumps(example(bundle) | {"explain": True}).replace("'", "\\u0027")
    token = " -H 'authorization: Bearer TOKEN'" if config.token else ""
    return f"curl -s {config.url}/rank -H 'content-type: application/json'{token} -d '{body}'"
