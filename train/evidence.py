"""Which blocks of image features matter to this log: prior variances by empirical Bayes, before training.

A linear model of clicks on the embedding is solved in closed form:

    logit = additive effects of title and context + the artwork's own bias + x' b + x' G z

with x the artwork's embedding and z the leading principal components of the member features. Every weight has a normal prior, whose
variance is shared by a block of the embedding and a term: b, what all members like, or G, taste. The prior of x' G z is a Gaussian
process over pairs (member, artwork) with a product kernel. Weights follow by Newton steps on the logistic likelihood, each solved
by conjugate gradients; variances by MacKay's fixed point: sum of squared weights / number of weights that the log determines
(*Bayesian Interpolation*, 1992). The ranker's image features are then scaled by the roots of these variances: one prior on the
scaled weights is another on each block, so that blocks which tell nothing about this service cost little.

Legend: N impressions, A artworks, E embedding, B blocks, H components of member features, C = 1 + H: a constant and those.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from rich.console import Console
from torch import Tensor

from datamodules.feed.impression_feed import Feed
from datamodules.shards.shard import TRAIN, Shards
from foundation.progress import progress_bar
from models.context import lookup
from models.two_tower import IMAGE_NORM, TwoTower
from train.config import FitConfig

MAX_IMPRESSIONS, MAX_ARTWORKS = 400_000, 20_000
"""Read at most: variances need a sample."""
COMPONENTS = 24
"""H, at most."""
NEWTON_STEPS, VARIANCE_STEPS, SOLVER_STEPS = 3, 3, 30
TITLE_RIDGE, CONTEXT_RIDGE = 30.0, 5.0
"""Strengths of the additive terms that are taken out first."""
TOLERANCE = 1e-8
"""Share of the first squared residual at which a solution is accepted."""
FLOOR = 1e-3
"""Least variance of a block, in shares of the largest: nothing is switched off for good."""


@dataclass(frozen=True)
class BlockVariances:
    """Prior variances of the weights of unit features, whose squares sum to 1 on average over the catalogue in each block."""

    main_B: Tensor
    """(B,): variances of the main effect, what all members like."""
    taste_B: Tensor
    """(B,): variances of taste, for member components whose variances sum to 1."""


@dataclass(frozen=True)
class Sample:
    """Training impressions in the order of the artworks shown."""

    artwork_N: Tensor
    """int64: index among the artworks that were read."""
    clicked_N: Tensor
    member_NC: Tensor
    """1 and the components, of unit variance."""
    share_H: Tensor
    """Variances of the components, summing to 1."""
    additive_N: Tensor
    """Logit of title and context."""
    rows_A: Tensor
    """Artwork rows that were read."""


def scale_by_evidence(
    model: TwoTower, shards: Shards, widths: list[int], config: FitConfig, console: Console
) -> BlockVariances:
    """Let each block of image features matter as far as the training period says: fit the variances, scale the model's image
    features by their roots, and print them. `widths`: of the blocks, summing to E."""
    with progress_bar(console) as progress:
        progress.add_task("how far blocks of image features matter", total=None)
        variances = block_variances(model, shards, widths, config.model.history.reach, config.batch)
    unit_E = unit_scale((model.artwork_image_AE - model.image_mean_E).double(), widths)
    block_E = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths))
    taste_B = variances.taste_B.clamp(min=FLOOR * variances.taste_B.max())
    main_E = unit_E * (variances.main_B[block_E] * config.prior.artwork).sqrt()
    _scale_images(model, (unit_E * taste_B[block_E].sqrt()).float(), main_E.float())
    main, taste = (" ".join(f"{v:.4f}" for v in part.tolist()) for part in (variances.main_B, variances.taste_B))
    console.print(f"fit: prior variances by block of image features: main {main}; taste {taste}")
    return variances


@torch.no_grad()
def _scale_images(model: TwoTower, taste_E: Tensor, main_E: Tensor) -> None:
    """Scale image features by how far the log lets them matter: `taste_E` up to a factor, for all that reads images but the
    bias by content, which reads them times `main_E`, and that of the engagement head, which has the one scale of before: the
    scales are those of clicks. Nothing is scaled where images do not differ."""
    images_AE = (model.artwork_image_AE[1 : model.sizes.artworks] - model.image_mean_E) * taste_E
    norm = images_AE.square().sum(1).mean().sqrt()
    if norm > 1e-6:
        before_E = model.image_scale_E.clone()
        model.image_scale_E.copy_(taste_E * (IMAGE_NORM / norm))
        model.engaged_scale_E.copy_(torch.where(taste_E > 0, before_E / model.image_scale_E, 0.0))
        model.main_scale_E.copy_(torch.where(taste_E > 0, main_E / model.image_scale_E, 0.0))


@torch.no_grad()
def block_variances(model: TwoTower, shards: Shards, widths: list[int], reach: int, batch: int) -> BlockVariances:
    """Fit on the training period, by member features of a model that is not trained yet; `widths`: of the blocks, summing to E."""
    training = model.training
    sample = _sample(model.eval(), shards, reach, batch)
    model.train(training)
    image_AE = (model.artwork_image_AE - model.image_mean_E).double().cpu()
    return fit_variances(sample, unit_blocks(image_AE, widths)[sample.rows_A], widths)


def unit_blocks(image_AE: Tensor, widths: list[int]) -> Tensor:
    """Centred embeddings, each block divided by its root mean squared norm over the catalogue (row 0 left out)."""
    return image_AE * unit_scale(image_AE, widths)


def unit_scale(image_AE: Tensor, widths: list[int]) -> Tensor:
    """What `unit_blocks` multiplies by, (E,); 0 for a block without spread."""
    norms = [block[1:].square().sum(1).mean().sqrt() for block in image_AE.split(widths, dim=1)]
    scales = [torch.where(norm > 1e-6, 1 / norm, 0.0).expand(width) for norm, width in zip(norms, widths, strict=True)]
    return torch.cat(scales)


def _sample(model: TwoTower, shards: Shards, reach: int, batch: int) -> Sample:
    total = int(shards.manifest["splits"]["train"]["impressions"])
    stride = max(1, -(-total // MAX_IMPRESSIONS))
    features, artworks, clicked, titles, context = [], [], [], [], []
    lookups = [f for f in model.sizes.context if f.kind != "number" and "presentation" in f.read_by]
    for index, b in enumerate(
        Feed(shards.shards, TRAIN, reach=reach, impressions=2 * batch, past=False, shuffle=False)
    ):
        if index % stride:
            continue
        states = model.states(b.play_title, b.play_artwork, b.play_watched)
        features.append(model.member_features(model.state_at(states, b.member, b.position)))
        artworks.append(b.artworks.squeeze(1))
        clicked.append(b.clicked)
        titles.append(b.title)
        context.append([lookup(f, b.context, model.sizes.categories).rows for f in lookups])
    artwork_N, clicked_N = torch.cat(artworks), torch.cat(clicked).double()
    additive = [(torch.cat(titles), TITLE_RIDGE)]
    additive += [(torch.cat(parts), CONTEXT_RIDGE) for parts in zip(*context, strict=True)]
    additive_N = additive_logit(clicked_N, additive)
    member_NH, share_H = _components(torch.cat(features))
    count_A = torch.bincount(artwork_N)
    count_A[0] = 0  # the unknown row has no image
    rows_A = count_A.argsort(descending=True, stable=True)[:MAX_ARTWORKS]
    rows_A = rows_A[count_A[rows_A] > 0].sort().values
    index_of = torch.full((len(count_A),), -1)
    index_of[rows_A] = torch.arange(len(rows_A))
    index_N = index_of[artwork_N]
    order = index_N.argsort(stable=True)
    order = order[index_N[order] >= 0]
    member_NC = torch.cat([torch.ones(len(order), 1), member_NH[order]], dim=1)
    return Sample(index_N[order], clicked_N[order], member_NC, share_H, additive_N[order], rows_A)


def _components(features_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Leading principal components of unit variance, float32 (N, H), and their variances, which sum to 1."""
    centred_NF = features_NF - features_NF.mean(0)
    value_F, vector_FF = torch.linalg.eigh((centred_NF.T @ centred_NF / len(centred_NF)).double())
    value_H, vector_FH = value_F.flip(0)[:COMPONENTS], vector_FF.flip(1)[:, :COMPONENTS]
    keep = value_H > 2e-3 * value_H[0]
    value_H, vector_FH = value_H[keep], vector_FH[:, keep]
    return centred_NF @ (vector_FH / value_H.sqrt()).float(), value_H / value_H.sum()


def additive_logit(clicked_N: Tensor, columns: list[tuple[Tensor, float]], steps: int = 6) -> Tensor:
    """Logit of a constant and one effect for each value of each column (rows, ridge), by Newton steps of one column at a time."""
    rate = clicked_N.mean().clamp(1e-6, 1 - 1e-6)
    logit_N = torch.logit(rate).expand(len(clicked_N)).clone()
    effects = [torch.zeros(int(row_N.max()) + 1, dtype=torch.float64) for row_N, _ in columns]
    for _ in range(steps):
        for effect, (row_N, ridge) in zip(effects, columns, strict=True):
            p_N = torch.sigmoid(logit_N)
            slope = torch.zeros_like(effect).index_add_(0, row_N, clicked_N - p_N) - ridge * effect
            curve = torch.zeros_like(effect).index_add_(0, row_N, p_N * (1 - p_N)) + ridge
            step = slope / curve
            effect += step
            logit_N = logit_N + step[row_N]
    return logit_N


def fit_variances(sample: Sample, unit_AE: Tensor, widths: list[int]) -> BlockVariances:
    """MacKay's fixed point around Newton steps on the clicks."""
    blocks, (artworks, wide) = len(widths), unit_AE.shape
    columns = sample.member_NC.shape[1]
    block_E = torch.repeat_interleave(torch.arange(blocks), torch.tensor(widths))
    term_C = torch.tensor([0] + [1] * (columns - 1))
    share_C = torch.cat([torch.ones(1, dtype=torch.float64), sample.share_H])
    variance_TB = torch.tensor([[0.01], [0.1]], dtype=torch.float64).expand(2, blocks) / blocks
    own_variance = 0.05
    weight_EC, own_A = torch.zeros(wide, columns, dtype=torch.float64), torch.zeros(artworks, dtype=torch.float64)
    bounds = torch.searchsorted(sample.artwork_N, torch.arange(artworks + 1)).tolist()
    for _ in range(NEWTON_STEPS):
        score_AC = unit_AE @ weight_EC
        score_AC[:, 0] += own_A
        logit_N = sample.additive_N + (score_AC[sample.artwork_N] * sample.member_NC).sum(1)
        p_N = torch.sigmoid(logit_N)
        root_N1, residual_N1 = (p_N * (1 - p_N)).sqrt().float()[:, None], (sample.clicked_N - p_N).float()[:, None]
        rooted_NC, slope_NC = sample.member_NC * root_N1, sample.member_NC * residual_N1
        information_ACC = torch.stack([(part.T @ part) for part in _parts(rooted_NC, bounds)]).double()
        slope_AC = torch.stack([part.sum(0) for part in _parts(slope_NC, bounds)]).double()
        target_AC = torch.einsum("acd,ad->ac", information_ACC, score_AC) + slope_AC
        # components have unit variance, so one matrix stands for the curvature of each
        gram_EE = (unit_AE * information_ACC[:, :1, 0]).T @ unit_AE
        for _ in range(VARIANCE_STEPS):
            root_EC = (variance_TB[term_C][:, block_E].T * share_C).clamp(min=1e-10).sqrt()
            inverse_CEE = torch.stack([_inverse(gram_EE, root_E) for root_E in root_EC.T])
            weight_EC, own_A = solve(
                unit_AE, information_ACC, target_AC, root_EC, own_variance**0.5, inverse_CEE, weight_EC, own_A
            )
            determined_EC = 1 - inverse_CEE.diagonal(dim1=1, dim2=2).T
            updates = []
            for term in (0, 1):
                columns_C = term_C == term
                squares_E = (weight_EC[:, columns_C].square() / share_C[columns_C]).sum(1)
                determined_E = determined_EC[:, columns_C].sum(1)
                squares_B, determined_B = (
                    torch.zeros(blocks, dtype=torch.float64).index_add_(0, block_E, part)
                    for part in (squares_E, determined_E)
                )
                updates.append((squares_B / determined_B.clamp(min=1e-3)).clamp(1e-7, 30.0))
            variance_TB = torch.stack(updates)
            posterior_A = own_variance / (1 + own_variance * information_ACC[:, 0, 0])
            determined = (1 - posterior_A / own_variance).sum()
            own_variance = float((own_A.square().sum() / determined.clamp(min=1e-3)).clamp(1e-4, 1.0))
    return BlockVariances(variance_TB[0], variance_TB[1])


def _parts(rows_NC: Tensor, bounds: list[int]) -> list[Tensor]:
    return [rows_NC[begin:end] for begin, end in pairwise(bounds)]


def _inverse(gram_EE: Tensor, root_E: Tensor) -> Tensor:
    """(I + R G R)^-1: the posterior covariance in units of the prior's, R its standard deviations."""
    scaled = gram_EE * root_E[:, None] * root_E
    return torch.linalg.inv(scaled + torch.eye(len(root_E), dtype=scaled.dtype))


def solve(
    unit_AE: Tensor,
    information_ACC: Tensor,
    target_AC: Tensor,
    root_EC: Tensor,
    own_root: float,
    inverse_CEE: Tensor,
    weight_EC: Tensor,
    own_A: Tensor,
    steps: int = SOLVER_STEPS,
    tolerance: float = TOLERANCE,
) -> tuple[Tensor, Tensor]:
    """Likeliest weights and own biases, by conjugate gradients in units of the prior's standard deviations."""
    own_scale_A = 1 / (1 + own_root**2 * information_ACC[:, 0, 0])

    def curvature(u_EC: Tensor, v_A: Tensor) -> tuple[Tensor, Tensor]:
        score_AC = unit_AE @ (u_EC * root_EC)
        score_AC[:, 0] += own_root * v_A
        informed_AC = torch.einsum("acd,ad->ac", information_ACC, score_AC)
        return u_EC + root_EC * (unit_AE.T @ informed_AC), v_A + own_root * informed_AC[:, 0]

    def precondition(u_EC: Tensor, v_A: Tensor) -> tuple[Tensor, Tensor]:
        return torch.einsum("cef,fc->ec", inverse_CEE, u_EC), own_scale_A * v_A

    u, v = weight_EC / root_EC, own_A / own_root
    at_u, at_v = curvature(u, v)
    rest_u, rest_v = root_EC * (unit_AE.T @ target_AC) - at_u, own_root * target_AC[:, 0] - at_v
    z_u, z_v = precondition(rest_u, rest_v)
    step_u, step_v = z_u, z_v
    norm = first = (rest_u * z_u).sum() + rest_v @ z_v
    for _ in range(steps):
        if norm <= tolerance * first or first == 0:
            break
        at_u, at_v = curvature(step_u, step_v)
        length = norm / ((step_u * at_u).sum() + step_v @ at_v)
        u, v, rest_u, rest_v = u + length * step_u, v + length * step_v, rest_u - length * at_u, rest_v - length * at_v
        z_u, z_v = precondition(rest_u, rest_v)
        new = (rest_u * z_u).sum() + rest_v @ z_v
        step_u, step_v, norm = z_u + new / norm * step_u, z_v + new / norm * step_v, new
    return u * root_EC, v * own_root
