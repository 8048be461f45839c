"""Descriptions of a bundle's files and of each tensor of its tables: enough to use them without this source.

In: the folder before its checksums are taken. Out: descriptions for `bundle.json` and the card.
"""

from pathlib import Path

from safetensors import safe_open

from foundation.context import CONTEXT_FILE
from serving.bundle.bundle import (
    ARTWORK_GRAPH,
    CATALOGUE,
    CHOOSE_ROWS,
    EXAMPLE,
    EXAMPLE_IN_NODE,
    EXPLAIN_ROWS,
    EXPLAIN_TABLES,
    GOLDEN,
    GOLDEN_GRAPHS,
    IMAGE_HASHES,
    MEMBER_ROWS,
    POSTERIOR,
    RANK_ROWS,
    TITLE_GRAPH,
    TITLE_VECTORS,
    TITLES_ROWS,
    VECTOR_HASHES,
    VOCABULARIES,
)
from serving.bundle.ids import TOWER_WEIGHTS, WEIGHTS
from serving.bundle.metadata import BundleRecord, FileDescription, TensorDescription
from serving.bundle.triton import GPU_REPOSITORY, REPOSITORY

FILE_DESCRIPTIONS = {
    "rank.onnx": "history, context, title and candidates, as ids -> probabilities and terms",
    "member.onnx": "a history -> the member's vectors, to keep until the member plays again",
    "choose.onnx": "a member's vector, context, title and candidates -> as rank.onnx",
    "titles.onnx": "a member's vector for titles -> the best titles",
    "explore.onnx": "candidates and rank.onnx's outputs for them -> a choice and its propensity",
    RANK_ROWS: "rank.onnx over rows of the vocabularies",
    MEMBER_ROWS: "member.onnx over rows of the vocabularies",
    CHOOSE_ROWS: "choose.onnx over rows of the vocabularies",
    TITLES_ROWS: "titles.onnx over rows of the vocabularies",
    EXPLAIN_ROWS: "inputs of rank_rows.onnx -> what each past play, person and context feature adds to a candidate's appeal",
    "choose_vectors.onnx": "as choose.onnx, of candidates given as vectors that artwork.onnx made",
    ARTWORK_GRAPH: "an image of any size, a vector of your own, or both, and what it depicts -> an artwork's vectors",
    TITLE_GRAPH: "genres, cast and year -> a title's vectors",
    TOWER_WEIGHTS: "the large weights of those two; it stays beside them",
    IMAGE_HASHES: "a hash of each artwork's image, by row from 1: keyart refresh detects changes by it",
    VECTOR_HASHES: "a hash of each artwork's `embedding`, a vector that came from outside, by row from 1",
    "fp16": "rank.onnx, member.onnx and choose.onnx in half the bytes, and their weights",
    "int8": "the same in a third of the bytes",
    WEIGHTS: "the graphs' large weights, each once; it stays beside them",
    CONTEXT_FILE: "context features: what each is, by which terms it is read, mean and standard deviation of numbers",
    VOCABULARIES: "ids by kind; an id's row is its index here plus 1, row 0 is for all others",
    CATALOGUE: "what each title and artwork was encoded from, by row from 1: keyart refresh detects changes by it",
    GOLDEN: "requests with torch's answers, or, for additions of a refresh, the bundle's own; a JSON object per line",
    GOLDEN_GRAPHS: "cases of each other graph by itself: inputs and outputs by name, null where not finite",
    EXAMPLE: "runs the golden cases with numpy and onnxruntime alone",
    EXAMPLE_IN_NODE: "the same with onnxruntime-node",
    REPOSITORY: "a model repository for Triton: graphs, what each reads of the weights, and configurations",
    GPU_REPOSITORY: "the same of graphs over rows, for GPUs",
    TITLE_VECTORS: "every title's vector, to rank titles by any vector index: the dot product with `title_query` is its score",
    EXPLAIN_TABLES: "every title's and artwork's vectors: appeal(k) = artwork_query . artwork_vector + "
    "content_query . artwork_content + artwork_bias - (artwork_query . mean_vector + content_query . mean_content + "
    "mean_bias of the title), with artwork_query and content_query as rank.onnx gives them",
    POSTERIOR: "the uncertainty of appeal: of its features artwork_vector * artwork_query (the first D), then the sums of "
    "artwork_content * content_query over image, people and moods (3)",
}
"""Descriptions by name of all files that a bundle may hold."""
TENSOR_DESCRIPTIONS = {
    TITLE_VECTORS: {
        "title_vector": ("I W", "by title row; its last column is the title's bias, which title_query multiplies by 1")
    },
    EXPLAIN_TABLES: {
        "artwork_vector": (
            "A D+O",
            "by artwork row: multiplied with a member's artwork_query in appeal; its last O numbers are what the artwork adds "
            "in a context, such as on a device",
        ),
        "artwork_content": (
            "A C",
            "by artwork row: projected image (D), mean of the people shown (D), shares of moods (G)",
        ),
        "artwork_bias": ("A", "by artwork row: what it adds for everybody"),
        "artwork_title": ("A", "by artwork row: the row of its title, 0: not known"),
        "artwork_expected": (
            "A",
            "by artwork row: click rate that is expected of it, which past clicks are compared with",
        ),
        "artwork_people": ("A L", "by artwork row: rows of the people it shows, padded with 0"),
        "mean_vector": ("I D+O", "by title row: mean of artwork_vector over the title's artworks"),
        "mean_content": ("I C", "by title row: mean of artwork_content over the title's artworks"),
        "mean_bias": ("I", "by title row: mean of artwork_bias over the title's artworks"),
        "play_content": ("I D+G", "by title row: mean of its people (D), its genres above the catalogue's shares (G)"),
        "play_mean_image": ("I D", "by title row: mean projected image, where a play's own artwork is not known"),
        "play_coplay": ("I R", "by title row: what is played together with it, summed over recent plays"),
    },
    POSTERIOR: {
        "spread": ("F F", "a root of the covariance of the features' weights"),
        "own": ("A", "by artwork row: standard deviation of what it adds by itself"),
    },
}
"""Axes, in the letters of `AXIS_LEGEND`, and meaning of each table's tensors."""
AXIS_LEGEND = (
    "I title rows, A artwork rows, L people on an artwork, D width, G genres, C = 2 D + G, R rank of what is played together, "
    "W width of what ranks titles, O own preferences of artworks by context, F = D + 3"
)


def describe_files(folder: Path) -> dict[str, FileDescription]:
    """By file name, its description; for a table also each tensor's type, shape, axes in the letters of `letters`, and
    meaning."""
    descriptions: dict[str, FileDescription] = {}
    for name, what in FILE_DESCRIPTIONS.items():
        if not (folder / name).exists():
            continue
        descriptions[name] = {"what": what}
        if name in TENSOR_DESCRIPTIONS:
            descriptions[name]["letters"] = AXIS_LEGEND
            descriptions[name]["tensors"] = _tensors(folder / name, TENSOR_DESCRIPTIONS[name])
    return descriptions


def section(metadata: BundleRecord) -> list[str]:
    """The card's section on the tables' contents."""
    files = metadata["files"]
    lines = [f"Rows are those of `{VOCABULARIES}`. Axes: {AXIS_LEGEND}."]
    for name in TENSOR_DESCRIPTIONS:
        lines += ["", f"### {name}", "", files[name]["what"], ""]
        lines += ["| tensor | type | shape | axes | meaning |", "|---|---|---|---|---|"]
        for tensor, tensor_info in files[name].get("tensors", {}).items():
            lines.append(
                f"| {tensor} | {tensor_info['dtype']} | {tuple(tensor_info['shape'])} | {tensor_info['axes']} "
                f"| {tensor_info['meaning']} |"
            )
    return lines


def _tensors(path: Path, meanings: dict[str, tuple[str, str]]) -> dict[str, TensorDescription]:
    """Descriptions of a file's tensors, read from its header only."""
    descriptions: dict[str, TensorDescription] = {}
    with safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118, it is no mapping
            part, (axes, meaning) = file.get_slice(name), meanings[name]
            dtype = {"F32": "float32", "I32": "int32"}[part.get_dtype()]
            descriptions[name] = {"dtype": dtype, "shape": list(part.get_shape()), "axes": axes, "meaning": meaning}
    return descriptions
