"""rank.onnx, choose.onnx and choose_vectors.onnx built by hand: the computation of `Ranking`, in half the operators of its trace.

A request asked alone costs its operators, some .3 us each, and hardly its arithmetic (docs/experiments.md). What `Ranking`
looks up and multiplies one by one is here one table of the context and one product for all heads that read the same; what
depends on a whole number alone, as weights of distance do, is a table of that number. Tables of titles and artworks are
`Ranking`'s, by name. Every exported graph is compared with `Ranking` itself, by parity and golden cases.

Legend: N requests, T plays, K candidates, D width, C content, R rank of co-play, S span; 1: an axis of
length 1, which saves reshaping.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from export.graph_builder import GraphBuilder
from foundation.context import KNOTS, MAX_POSITION, ContextFeature
from models.layers import repeated
from models.linear_title_models import COARSE_RANK
from models.presentation import PLAY_COUNT_BINS
from models.ranking import OUTPUTS, Ranking
from models.serving import CHOOSE_OUTPUTS, VECTORS, Choose
from models.two_tower import MEANS, TwoTower

UNUSED_INPUT = "history_watched"
"""The input that only the learned state reads."""
EXCLUDED_LOGIT = np.float32(-1e9)
"""Logit of a play that does not count."""
MIN_NORM = np.float32(1e-6)
"""Length of a co-play vector below which it counts as zero."""


def can_assemble(model: TwoTower) -> bool:
    """Whether a model is of the kind built here, the default's; others are traced."""
    return model.artwork_query_state is None and model.coplay is not None


@torch.no_grad()
def rank_graph(ranking: Ranking, opset: int, ir_version: int) -> ModelProto:
    """History, context, title, candidates -> `models.ranking.OUTPUTS`, over rows."""
    g = GraphBuilder()
    weight_N1T, counts_N1T = _weights(g, ranking.model)
    # rows 0 are zero: for each play, one of the two images is such a row
    assert not ranking.artwork_image[0].any()
    assert not ranking.play_mean_image[0].any()
    unclicked_NT = g("Where", g("Greater", "history_artwork", np.array(0)), np.array(0), "history_title")
    images = (("artwork_image", "history_artwork"), ("play_mean_image", unclicked_NT))
    image_N1D = g("Add", *(g("MatMul", weight_N1T, _gather(g, ranking, name, rows)) for name, rows in images))
    content_N1C = g("MatMul", weight_N1T, _gather(g, ranking, "play_content", "history_title"))
    coplay_N1R = g("MatMul", counts_N1T, _gather(g, ranking, "play_coplay", "history_title"))
    title_N1 = g.unsqueeze("title", 1)
    # an unknown title, row 0, equals no other
    same_NT = g("Where", g("Equal", "history_title", title_N1), "history_title", np.array(0))
    same_NT1 = g.unsqueeze(g("Cast", same_NT, to=TensorProto.FLOAT), 2)
    rewatch_N11 = g("Min", g("MatMul", counts_N1T, same_NT1), np.array(1, np.float32))
    recent_N1C = g("Concat", image_N1D, content_N1C, axis=2)
    queries = _ranked(g, ranking, recent_N1C, coplay_N1R, rewatch_N11, title_N1)
    for name, vector in zip(OUTPUTS[-2:], queries, strict=True):
        g("Squeeze", vector, np.array([1]), name=name)
    inputs = [_value(name, ranking) for name in ranking.inputs if name != UNUSED_INPUT]
    return g.model("rank", inputs, [_value(name, ranking) for name in OUTPUTS], opset, ir_version)


@torch.no_grad()
def choose_graph(ranking: Ranking, opset: int, ir_version: int, *, vectors: bool = False) -> ModelProto:
    """A member's vector, context, title, candidates -> `models.serving.CHOOSE_OUTPUTS`, over rows.

    `vectors`: candidates are given as `models.serving.VECTORS`, not as rows.
    """
    g = GraphBuilder()
    recent_N1C, coplay_N1R = g.split(g.unsqueeze("member", 1), _sizes(ranking))
    rewatch_N = g("And", "played_before", g("Greater", "title", np.array(0)))
    rewatch_N11 = g.unsqueeze(g("Cast", rewatch_N, to=TensorProto.FLOAT), 1, 2)
    _ranked(g, ranking, recent_N1C, coplay_N1R, rewatch_N11, g.unsqueeze("title", 1), vectors=vectors)
    inputs = [_value(name, ranking) for name in Choose(ranking, vectors=vectors).inputs]
    return g.model("choose", inputs, [_value(name, ranking) for name in CHOOSE_OUTPUTS], opset, ir_version)


def _weights(g: GraphBuilder, model: TwoTower) -> tuple[str, str]:
    """The weight of every play in the mean, see `RecentMean.last`, and 1 for those that count, else 0; both (N, 1, T)."""
    bias_S, span = model.recent.band.bias_1S[0].double(), model.config.history.span
    plays_S = torch.arange(1, span + 1).double()
    # softmax and shrinkage as logarithms: of the sum over a number of plays, by that number
    level_S = torch.logcumsumexp(bias_S, 0) - torch.log(plays_S / (plays_S + model.recent.log_prior.double().exp()))
    level = np.concatenate([[-EXCLUDED_LOGIT], level_S.numpy()]).astype(np.float32)
    # by the number of plays from the end, 1 for the last one; 0 and span + 1 for all plays that do not count
    logit, counts = np.full(span + 2, EXCLUDED_LOGIT), np.zeros(span + 2, np.float32)
    logit[1:-1], counts[1:-1] = bias_S.float().numpy(), 1
    length_N11 = g.unsqueeze("history_length", 1, 2)
    plays = g("Squeeze", g("Shape", "history_title", start=1, end=2), np.array([0]))
    index_T = g("Range", np.array(0), plays, np.array(1))
    nth_N1T = g("Clip", g("Sub", length_N11, index_T), np.array(0), np.array(span + 1))
    logit_N1T = g("Gather", g.constant(logit, "recent_logit"), nth_N1T)
    level_N11 = g("Gather", g.constant(level, "recent_level"), g("Clip", length_N11, np.array(0), np.array(span)))
    weight_N1T = g("Exp", g("Sub", logit_N1T, level_N11))
    return weight_N1T, g("Gather", g.constant(counts, "recent_counts"), nth_N1T)


def _ranked(
    g: GraphBuilder,
    ranking: Ranking,
    recent_N1C: str,
    coplay_N1R: str,
    rewatch_N11: str,
    title_N1: str,
    *,
    vectors: bool = False,
) -> tuple[str, str]:
    """From a member's means: every output except the artwork queries, and the queries, (N, 1, D) and (N, 1, C)."""
    model, width = ranking.model, ranking.model.config.width
    engagement, coplay = model.engagement, model.coplay
    assert coplay is not None, "see fits"
    length_N11 = g("Max", g("ReduceL2", coplay_N1R, np.array([2]), keepdims=1), np.array(MIN_NORM))
    member_N1W = g("Concat", recent_N1C, g("Div", coplay_N1R, length_N11), axis=2)
    heads = (model.title_query, model.artwork_query, engagement.member)
    weight_WH = torch.cat([head.weight for head in heads]).T.clone()
    weight_WH[: sum(model.content_widths())] *= MEANS
    heads_N1H = g("MatMul", member_N1W, g.constant(weight_WH.numpy(), "heads_weight"))
    heads_N1H = g("Add", heads_N1H, torch.cat([head.bias for head in heads]).numpy())
    interest_N1D, artwork_query_N1D, engagement_query_N1D = g.split(heads_N1H, [width] * 3)
    context_N1D, presentation_N12 = g.split(_context(g, model), [width, 2])
    artwork_query_N1D = g("Add", artwork_query_N1D, context_N1D)
    gain_C = repeated(model.similarity_gain, model.content_widths()).numpy()
    content_query_N1C = g("Mul", recent_N1C, gain_C)

    def title(name: str) -> str:
        return _gather(g, ranking, name, title_N1)

    # affinity: of the title itself, and of the mean of its artworks
    products_N1R = g("Mul", coplay_N1R, title("title_coplay"))
    patterns_R2 = torch.ones(coplay.config.rank, 2)
    patterns_R2[COARSE_RANK:, 0] = 0
    scores_N12 = g("Asinh", g("MatMul", products_N1R, (patterns_R2 / coplay.score_std_2).numpy()))
    coplay_term_N11 = g("MatMul", scores_N12, model.coplay_gain[:, None].numpy())
    rewatch_term_N11 = g("Mul", rewatch_N11, model.rewatch_gain.numpy())
    by_count = model.play_count(torch.arange(2 ** (PLAY_COUNT_BINS - 1)))[:, None, None].numpy()
    count_N = g("Clip", "play_count", np.array(0), np.array(len(by_count) - 1))
    count_N11 = g("Gather", g.constant(by_count, "by_play_count"), count_N)
    interest_N11 = _dots(g, interest_N1D, title("title_vector"))
    affinity_N11 = g("Sum", interest_N11, title("title_bias"), rewatch_term_N11, coplay_term_N11, count_N11)
    queries = (_dots(g, artwork_query_N1D, title("mean_vector")), _dots(g, content_query_N1C, title("mean_content")))
    shared_N11 = g("Sum", *queries, title("mean_bias"))

    # two numbers per candidate: appeal, and what it adds to engagement beside appeal
    title_engagement_query_N1D, level_N11 = g.split(title("title_engaged"), [width, 1])
    fit_gain = repeated(engagement.fit_gain, model.content_widths()[1:]).numpy()
    fits_N1C = g("Pad", g("Mul", title("title_content"), fit_gain), np.array([0, 0, width, 0, 0, 0]))
    by_vector_N2D = g("Concat", artwork_query_N1D, g("Add", engagement_query_N1D, title_engagement_query_N1D), axis=1)
    by_content_N2C = g("Concat", content_query_N1C, fits_N1C, axis=1)

    def artwork(name: str) -> str:
        if vectors:
            return f"artwork_{name}" if name in ("vector", "content") else g.unsqueeze(f"artwork_{name}", 2)
        return _gather(g, ranking, f"artwork_{name}", "artworks")

    artwork_terms_NK2 = g("Concat", artwork("bias"), artwork("engaged"), axis=2)
    products = (_dots(g, artwork("vector"), by_vector_N2D), _dots(g, artwork("content"), by_content_N2C))
    terms_NK2 = g("Sum", *products, artwork_terms_NK2)
    by_affinity, by_appeal = engagement.gain.tolist()
    heads_N14 = g("Concat", affinity_N11, level_N11, presentation_N12, axis=2)
    member_to_heads_42 = np.array([[1, by_affinity], [0, 1], [1, 0], [0, 1]], np.float32)
    terms_to_heads_22 = np.array([[1, by_appeal], [0, 1]], np.float32)
    probability_NK2 = g(
        "Sigmoid", _logits(g, model.calibration.numpy(), terms_NK2, terms_to_heads_22, heads_N14, member_to_heads_42)
    )
    g("Gather", probability_NK2, np.array(0), axis=2, name="click_probability")
    g("Mul", "click_probability", g("Gather", probability_NK2, np.array(1), axis=2), name="engaged_probability")
    appeal_NK = g("Gather", terms_NK2, np.array(0), axis=2)
    g("Sub", appeal_NK, g("Squeeze", shared_N11, np.array([2])), name="appeal")
    g("Squeeze", g("Add", affinity_N11, shared_N11), np.array([1, 2]), name="affinity")
    return artwork_query_N1D, content_query_N1C


def _context(g: GraphBuilder, model: TwoTower) -> str:
    """What the context adds to the artwork query, the click and engagement, (N, 1, D + 2): a sum of rows of one table."""
    width, sizes = model.config.width, model.sizes
    terms = (
        (slice(width), model.artwork_query_context),
        (slice(width, width + 1), model.presentation.context),
        (slice(width + 1, width + 2), model.engagement.context),
    )
    # hours come last, so that an invalid one is refused, as in a table of its own
    order = sorted(sizes.context, key=lambda feature: (feature.kind == "hour", sizes.context.index(feature)))
    tables, indices, shares, begin = [], [], [], 0
    for feature in order:
        rows_table = torch.zeros(feature.rows(sizes.categories), width + 2)
        for columns, term in terms:
            if feature in term.features:
                rows_table[:, columns] = term.weights(feature).weight
        if not tables:  # every impression reads one row of the first feature
            rows_table[:, width] += model.presentation.base
        for index, share in _lookup(g, feature, sizes.categories):
            indices.append(g("Add", index, np.array(begin)) if begin else index)
            shares.append(share)
        tables.append(rows_table)
        begin += len(rows_table)
    stacked = g.constant(torch.cat(tables).numpy(), "context")
    indices_FN1 = g("Reshape", g("Concat", *indices, axis=0), np.array([len(indices), -1, 1]))
    rows_FN1W = g("Gather", stacked, indices_FN1)
    if any(shares):
        ones_N = g("Cast", g("Equal", "play_count", "play_count"), to=TensorProto.FLOAT)
        listed = g("Concat", *(share or ones_N for share in shares), axis=0)
        rows_FN1W = g("Mul", rows_FN1W, g("Reshape", listed, np.array([len(indices), -1, 1, 1])))
    return g("ReduceSum", rows_FN1W, np.array([0]), keepdims=0)


def _lookup(g: GraphBuilder, feature: ContextFeature, categories: Mapping[str, int]) -> list[tuple[str, str]]:
    """As `models.context.lookup`: rows of a feature's table, (N,), each with its share, (N,), or "" for 1."""
    name = feature.name
    if feature.kind == "category":
        return [(name, "")]
    if feature.kind == "hour":
        return [(g("Add", name, np.array(1)), "")]
    if feature.kind == "position":
        row_N = g("Add", g("Clip", name, np.array(-1), np.array(MAX_POSITION)), np.array(1))
        if feature.crossed_with:
            rows = np.array(categories[feature.crossed_with])
            row_N = g("Add", g("Mul", row_N, rows), feature.crossed_with)
        return [(row_N, "")]
    last = len(KNOTS) - 1
    z_N = g("Div", g("Sub", name, np.array(feature.mean or 0.0, np.float32)), np.array(feature.std or 1.0, np.float32))
    unknown_N = g("IsNaN", z_N)
    at_N = g(
        "Sub",
        g("Clip", z_N, np.array(KNOTS[0], np.float32), np.array(KNOTS[-1], np.float32)),
        np.array(KNOTS[0], np.float32),
    )
    at_N = g("Where", unknown_N, np.array(0, np.float32), at_N)
    below_N = g("Min", g("Floor", at_N), np.array(last - 1, np.float32))
    share_N = g("Sub", at_N, below_N)
    row_N = g("Where", unknown_N, np.array(0), g("Add", g("Cast", below_N, to=TensorProto.INT64), np.array(1)))
    above_N = g("Where", unknown_N, np.array(0), g("Add", row_N, np.array(1)))
    return [(row_N, g("Sub", np.array(1, np.float32), share_N)), (above_N, share_N)]


def _logits(
    g: GraphBuilder,
    calibration: NDArray,
    terms_NK2: str,
    terms_to_heads_22: NDArray,
    heads_N14: str,
    member_to_heads_42: NDArray,
) -> str:
    """Calibrated logits of both heads, (N, K, 2), linear in the inputs before `models.types.piecewise_linear_calibration`."""
    scale_2, shift_2, knots, bends = calibration[:, 0], calibration[:, 1], *np.split(calibration[:, 2:], 2, axis=1)
    straight = not bends.any()
    gain_2 = scale_2 if straight else np.ones(2, np.float32)
    level_N12 = g("MatMul", heads_N14, member_to_heads_42 * gain_2)
    level_N12 = g("Add", level_N12, shift_2) if straight else level_N12
    logit_NK2 = g("Add", g("MatMul", terms_NK2, terms_to_heads_22 * gain_2), level_N12)
    if straight:
        return logit_NK2
    above = g("Relu", g("Sub", g.unsqueeze(logit_NK2, 3), knots))
    bent_NK2 = g("ReduceSum", g("Mul", above, bends), np.array([3]), keepdims=0)
    return g("Sum", g("Mul", logit_NK2, scale_2), shift_2, bent_NK2)


def _dots(g: GraphBuilder, x_NKD: str, y_NJD: str) -> str:
    """Dot products, (N, K, J); ONNX Runtime makes one operator of the two."""
    return g("MatMul", x_NKD, g("Transpose", y_NJD, perm=[0, 2, 1]))


def _gather(g: GraphBuilder, ranking: Ranking, name: str, rows: str) -> str:
    """Rows of a table of `ranking`; an axis of length 1 for one number per row."""
    if name not in g.constants:
        values = getattr(ranking, name).numpy()
        g.constant(values if values.ndim == 2 else values[:, None], name)
    return g("Gather", name, rows)


def _sizes(ranking: Ranking) -> tuple[int, int]:
    """Lengths of a member's content vector and of its co-play vector."""
    return sum(ranking.model.content_widths()), ranking.model.config.coplay.rank


def _value(name: str, ranking: Ranking) -> ValueInfoProto:
    """An input or output with the type and shape of traced graphs."""
    kinds = {"member": TensorProto.FLOAT, "played_before": TensorProto.BOOL} | dict.fromkeys(OUTPUTS, TensorProto.FLOAT)
    content, rank = _sizes(ranking)
    more = {"member": [content + rank], "artwork_query": [ranking.model.config.width], "content_query": [content]}
    more |= {key: ["candidates"] for key in ("artworks", "click_probability", "engaged_probability", "appeal")}
    more |= {"artwork_vector": ["candidates", ranking.model.config.width], "artwork_content": ["candidates", content]}
    more |= {key: ["candidates"] for key in VECTORS[2:]}
    kinds |= dict.fromkeys(VECTORS, TensorProto.FLOAT)
    kinds |= {f.name: TensorProto.FLOAT for f in ranking.model.sizes.context if f.kind == "number"}
    more |= {key: ["plays"] for key in ("history_title", "history_artwork")}
    return helper.make_tensor_value_info(name, kinds.get(name, TensorProto.INT64), ["requests", *more.get(name, [])])
