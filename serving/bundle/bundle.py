"""Bundles: the folder a serving team gets, read without torch.

The graphs over ids, for a serving team, and over rows, for bulk work here, are those of `export.graphs`; beside them
some in fewer bytes (`serving.bundle.variants`), `vocabularies.json` (ids -> rows), golden cases, `example.py` and
`example.mjs` that run them, `triton/` and `triton_gpu/`, `CARD.md`, and `bundle.json` (what every file, input and output is, what
the model was made of, what was measured, each file's SHA-256 by its path from the folder, and a digest of all that).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort
from safetensors.numpy import load_file

from datamodules.shards.vocabulary import Vocabularies, load_vocabularies
from foundation.context import ContextFeature, load_context
from foundation.errors import UserError
from serving.bundle.hard_links import Inode, file_checksums, sha256
from serving.bundle.metadata import BUNDLE_FILE, BundleRecord
from serving.bundle.requests import RequestLengths, no_past
from serving.bundle.seal import DIGEST, read_record
from serving.bundle.steady import Identity, T, identity, read_steadily

VOCABULARIES, CATALOGUE, CARD = "vocabularies.json", "catalogue.json", "CARD.md"
GOLDEN, GOLDEN_GRAPHS = "golden.jsonl", "golden_graphs.jsonl"
EXAMPLE, EXAMPLE_IN_NODE = "example.py", "example.mjs"
ARTWORK_GRAPH, TITLE_GRAPH = "artwork.onnx", "title.onnx"
RANK_ROWS, MEMBER_ROWS, EXPLAIN_ROWS = "rank_rows.onnx", "member_rows.onnx", "explain_rows.onnx"
CHOOSE_ROWS, TITLES_ROWS = "choose_rows.onnx", "titles_rows.onnx"
TITLE_VECTORS, POSTERIOR = "titles.safetensors", "posterior.safetensors"
EXPLAIN_TABLES = "explain.safetensors"
CONTEXT_PREFIX = "context_"
"""How the names of tables of context features in graphs begin."""
IMAGE_HASHES = "images.json"
"""Hashes of the artworks' images, by row from 1; absent where images are not read."""
VECTOR_HASHES = "vectors.json"
"""Hashes of the user's own vectors of artworks, by row from 1; absent where none were given."""


def bundle_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the record that holds them, by path from the folder."""
    return {name: digest for name, digest in file_checksums(folder).items() if name != BUNDLE_FILE}


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    folder: Path
    metadata: BundleRecord
    threads: int = 0
    """Threads of ONNX Runtime; 0: one per core."""
    identity: Identity | None = None
    """The folder's when it was opened: files are read when they are needed, and never those of another bundle."""

    @classmethod
    def open(cls, folder: Path, threads: int = 0) -> "Bundle":
        """Read and check a bundle; UserError where it is not a bundle, has another version, or was changed since the export.

        While another process replaces it, the old or the new one is opened.
        """
        return read_steadily(folder, lambda: cls._open_once(folder, threads))

    @classmethod
    def _open_once(cls, folder: Path, threads: int) -> "Bundle":
        opened_as, metadata = identity(folder), read_record(folder)
        digest_by_inode: dict[Inode, str] = {}
        for name, digest in metadata["sha256"].items():
            if sha256(folder / name, digest_by_inode) != digest:
                raise UserError(
                    f"{folder / name}: is missing or is not the file that was exported. Export the run again."
                )
        return cls(folder, metadata, threads, opened_as)

    def _own(self, read: Callable[[], T]) -> T:
        """What `read` makes of the files; UserError where a bundle with others has taken the folder since this one was opened."""
        try:
            value = read()
        except Exception:
            self._require_unreplaced()
            raise
        self._require_unreplaced()
        return value

    def _require_unreplaced(self) -> None:
        if self.identity is None or identity(self.folder) == self.identity:
            return
        if Bundle.open(self.folder).content_checksums != self.content_checksums:
            raise UserError(f"{self.folder}: another bundle took its place while it was used. Run the command again.")

    @property
    def digest(self) -> str:
        """SHA-256 of its record, 64 hexadecimal digits, which identifies the whole bundle: see `serving.bundle.seal`."""
        return self.metadata[DIGEST]

    @property
    def content_checksums(self) -> dict[str, str]:
        """SHA-256 of every file that can change an answer: all but the card, which describes them."""
        return {name: digest for name, digest in self.metadata["sha256"].items() if name != CARD}

    @property
    def test_from(self) -> datetime:
        """The start of its run's test period; UserError where it was exported without a run's dates."""
        if "test_from" not in self.metadata:
            raise UserError(
                f"{self.folder / BUNDLE_FILE}: does not say when the test period began. Export a run by keyart export."
            )
        return datetime.fromisoformat(self.metadata["test_from"])

    @cached_property
    def vocabularies(self) -> Vocabularies:
        """Ids -> rows."""
        return self._own(lambda: load_vocabularies(self.folder / VOCABULARIES, "Export the run again."))

    @cached_property
    def context(self) -> tuple[ContextFeature, ...]:
        """The context features of a request."""
        return self._own(lambda: load_context(self.folder, "Export the run again."))

    @cached_property
    def session(self) -> ort.InferenceSession:
        """ONNX Runtime on the CPU."""
        return self._open(RANK_ROWS)

    @cached_property
    def member_session(self) -> ort.InferenceSession:
        """ONNX Runtime on the CPU for the graph of members' vectors that rank titles."""
        return self._open(MEMBER_ROWS)

    @cached_property
    def explain_session(self) -> ort.InferenceSession:
        """The same for the terms of appeal."""
        return self._open(EXPLAIN_ROWS)

    def _open(self, name: str) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        providers = ["CPUExecutionProvider"]
        return self._own(lambda: ort.InferenceSession(self.folder / name, options, providers=providers))

    @cached_property
    def tables(self) -> dict[str, np.ndarray]:
        """The vectors of titles and artworks, by name, read once: see `serving.bundle.contents`."""
        return self.load_tables(EXPLAIN_TABLES)

    def load_tables(self, name: str) -> dict[str, np.ndarray]:
        """The tables of a file, such as POSTERIOR, by name: see `serving.bundle.contents`."""
        return self._own(lambda: load_file(self.folder / name))

    @property
    def history_length(self) -> int:
        """Plays of a request's history, at most: the last ones."""
        return int(self.metadata["history_length"])

    @property
    def past_length(self) -> int:
        """Past impressions that a request reads, at most: the last ones; 0 where the bundle reads none."""
        return int(self.metadata["past_length"])

    @property
    def request_lengths(self) -> RequestLengths:
        """Plays and past impressions of a request, at most."""
        return RequestLengths(self.history_length, self.past_length)

    @property
    def outcome_delay(self) -> str:
        """After which time an impression's outcome counts as known, such as 1h."""
        return str(self.metadata.get("outcome_delay", "1h"))

    @property
    def history_span(self) -> int:
        """The number of last plays among which a title counts as played before."""
        return int(self.metadata["history_span"])

    def rank(
        self, request: dict[str, np.ndarray], outputs: Sequence[str] = (), *, release_memory: bool = False
    ) -> dict[str, np.ndarray]:
        """Run the graph: inputs and outputs by name, as `bundle.json` describes them; `outputs`: those to return, default all.

        `release_memory`: whether to return the memory that ONNX Runtime allocated for it to the system, instead of keeping it.
        """
        names = list(outputs) or [output.name for output in self.session.get_outputs()]
        return dict(zip(names, _run(self.session, request, names, release_memory), strict=True))

    def members(self, history: dict[str, np.ndarray]) -> np.ndarray:
        """Title queries, float32 (N, W), from the inputs `history_*` of a request: past impressions tell nothing of titles."""
        return _run(self.member_session, no_past(len(history["history_length"])) | history, ["title_query"])[0]

    def explain(self, request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The terms of appeal by name, from the inputs of `rank`."""
        names = [output.name for output in self.explain_session.get_outputs()]
        return dict(zip(names, _run(self.explain_session, request, names), strict=True))


def _run(
    session: ort.InferenceSession, request: dict[str, np.ndarray], names: list[str], release_memory: bool = False
) -> list[np.ndarray]:
    """A graph's outputs. Inputs that this kind of model does not read, and its graph lacks, are left out."""
    read = {part.name: request[part.name] for part in session.get_inputs()}
    options = ort.RunOptions()
    if release_memory:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return [np.asarray(value) for value in session.run(names, read, options)]
