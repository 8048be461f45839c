"""Type, shape and meaning of every input and output of the graphs, for `bundle.json` and the card."""

from collections.abc import Mapping, Sequence

from onnx import ModelProto, TensorProto, ValueInfoProto

from foundation.context import HOURS, MAX_POSITION, ContextFeature
from models.serving import VECTORS
from serving.bundle.metadata import GraphDescription, TensorPort

DESCRIPTIONS = {
    "history_title": ("int64", "(N, T)", "title rows of the last plays, oldest first, on the right padded with 0"),
    "history_artwork": ("int64", "(N, T)", "artwork rows they were clicked through, 0 where not known"),
    "history_watched": ("float32", "(N, T)", "fraction watched, 0 .. 1, NaN where not known"),
    "history_length": (
        "int64",
        "(N,)",
        "plays in the history, clamped to 0 .. T; T at least 1, at most `history_length`",
    ),
    "past_artwork": (
        "int64",
        "(N, J)",
        "artwork rows of the member's past impressions whose outcome is known, the last `past_length` at most; padded with 0",
    ),
    "past_clicked": ("float32", "(N, J)", "1 where that impression was clicked, else 0"),
    "past_hours": ("float32", "(N, J)", "hours since then, NaN where not known, which is no fatigue"),
    "artwork": ("int64", "(N,)", "artwork row of one more impression whose outcome is known"),
    "clicked": ("float32", "(N,)", "1 where it was clicked, else 0"),
    "updated": ("float32", "(N, S)", "the member's vector after it"),
    "by_past": ("float32", "(N, J, K)", "what a past impression adds to appeal by the member's own taste"),
    "of_past": ("float32", "(N, K)", "what own taste takes back of the query that all members share"),
    "by_fatigue": ("float32", "(N, K)", "what the artwork loses by past impressions of it that were not clicked"),
    "play_count": ("int64", "(N,)", "plays of the member so far, those not among history_* included"),
    "title": ("int64", "(N,)", "title row"),
    "artworks": ("int64", "(N, K)", "candidates: artwork rows, padded with 0"),
    "click_probability": ("float32", "(N, K)", "calibrated probability of a click, were this artwork shown"),
    "engaged_probability": ("float32", "(N, K)", "calibrated probability of a click that leads to a real viewing"),
    "appeal": (
        "float32",
        "(N, K)",
        "what the artwork adds to the click logit above its title's mean artwork, for this member",
    ),
    "by_play": ("float32", "(N, T, K)", "what a play adds to appeal by the learned part of the towers"),
    "by_image": ("float32", "(N, T, K)", "the same by the likeness of its image to the candidate's"),
    "by_people": ("float32", "(N, T, K)", "the same by the people that the title and the candidate have"),
    "by_genres": ("float32", "(N, T, K)", "the same by genres and moods"),
    "by_person": ("float32", "(N, K, L)", "the sum of by_people over plays, by each person that the candidate shows"),
    "by_context": ("float32", "(N, K, F)", "what each context feature that appeal reads adds"),
    "of_artwork": ("float32", "(N, K)", "what the artwork adds for everybody"),
    "of_state": ("float32", "(N, K)", "what an encoder that attends adds and plays cannot share out; otherwise 0"),
    "of_title": (
        "float32",
        "(N, 1)",
        "minus what the mean of the title's artworks has; with all terms, they sum to appeal",
    ),
    "affinity": ("float32", "(N,)", "what the title adds to the click logit, for this member"),
    "artwork_query": (
        "float32",
        "(N, D + O)",
        "multiplied with artwork vectors in appeal; its last O numbers are 1 for values of the context, else 0",
    ),
    "content_query": ("float32", "(N, 2 D + G)", "multiplied with artworks' image, people and moods in appeal"),
    "member": ("float32", "(N, S)", "a history's vector for choose.onnx"),
    "title_query": (
        "float32",
        "(N, W)",
        "ranks titles: its dot product with a line of titles.safetensors is that title's score",
    ),
    "played_before": ("bool", "(N,)", "whether the title is among the last `history_span` plays"),
    "played": ("int64", "(N, P)", "title rows that are left out, padded with 0"),
    "top": ("int64", "(1,)", "how many titles, at least 1"),
    "titles": ("int64", "(N, top)", "title rows, best first; those of a list that has ended are padded with 0"),
    "candidates": ("int64", "(N,)", "how many of `artworks`, the first ones, are candidates"),
    "seed": (
        "int64",
        "(N,)",
        "selects the draw that decides, so give every request another one; equal seeds choose equally",
    ),
    "choice": ("int64", "(N,)", "index of the artwork to show among the candidates, from 0"),
    "propensity": ("float32", "(N,)", "probability of the choice, to be logged"),
    "policy": ("float32", "(N, K)", "probability of each candidate"),
    "artwork_vector": ("float32", "(N, D + O)", "multiplied with a member's artwork_query in appeal"),
    "artwork_content": (
        "float32",
        "(N, 2 D + G)",
        "multiplied with a member's content_query in appeal: image, people, moods",
    ),
    "artwork_bias": ("float32", "(N,)", "what the artwork adds for every member"),
    "artwork_engaged": ("float32", "(N,)", "the same for viewings"),
    "image": (
        "uint8",
        "(N, H, W, C)",
        "images of one size, any, upright and in sRGB; C: 3, RGB; 1, grey; 4, RGB and alpha, composed over black",
    ),
    "embedding": ("float32", "(N, V)", "vectors of the model that made `embedding` of artworks.parquet, unchanged"),
    "depicts": ("int64", "(N, L)", "people and moods, padded with 0"),
    "image_embedding": ("float32", "(N, E)", "the tower's input, from the image, the vector, or both"),
    "genres": ("int64", "(N, G)", "genres, padded with 0"),
    "cast": ("int64", "(N, P)", "the cast, the first billed first, padded with 0"),
    "release_year": ("float32", "(N,)", "year, NaN where not known"),
    "title_vector": ("float32", "(N, D)", "multiplied with a member's title query in affinity"),
    "title_content": ("float32", "(N, D + G)", "people and genres"),
    "title_bias": ("float32", "(N,)", "what the title adds for every member"),
    "title_engaged": ("float32", "(N, D + O + 1)", "the same for viewings"),
    "play_token": ("float32", "(N, D)", "a play's input of the learned state"),
    "play_content": ("float32", "(N, D + G)", "a play's input of the mean over plays: people and genres"),
    "retrieval_vector": ("float32", "(N, W)", "multiplied with title_query: a row of titles.safetensors"),
    "scores": ("float32", "(N, top)", "their scores, of which only differences count; -inf where a list has ended"),
}
"""Descriptions by name, over rows; those over ids are derived from them."""


def describe_feature(feature: ContextFeature) -> tuple[str, str, str]:
    """Type, shape and meaning of a context feature as an input of a graph over rows."""
    unknown = {
        "category": "row of its vocabulary, 0 where not known",
        "number": "NaN where not known",
        "hour": f"0 .. {HOURS - 1}, -1 where not known; any other number counts as the nearest of these",
        "position": f"from 0, {MAX_POSITION} and more as one, below 0 where not known",
    }[feature.kind]
    return feature.dtype, "(N,)", f"{feature.description or f'{feature.source} of impressions'}; {unknown}"


def describe_graph(graph: ModelProto, features: Sequence[ContextFeature]) -> GraphDescription:
    """Every input and output of a graph: name, type, shape and meaning."""
    descriptions = DESCRIPTIONS | {feature.name: describe_feature(feature) for feature in features}
    return {
        "inputs": [_port(part, descriptions, of_candidates=part.name in VECTORS) for part in graph.graph.input],
        "outputs": [_port(part, descriptions) for part in graph.graph.output],
    }


def _port(
    part: ValueInfoProto, descriptions: Mapping[str, tuple[str, str, str]], *, of_candidates: bool = False
) -> TensorPort:
    dtype, shape, meaning = descriptions[part.name]
    if of_candidates:
        shape = shape.replace("(N,)", "(N, K)") if shape == "(N,)" else shape.replace("(N,", "(N, K,")
    if part.type.tensor_type.elem_type == TensorProto.STRING:
        dtype, meaning = "string", meaning.replace("row of its vocabulary, 0 where", 'id, "" where')
        meaning = meaning.replace("row", "id").replace("padded with 0", 'padded with ""')
    return {"name": part.name, "dtype": dtype, "shape": shape, "meaning": meaning}
