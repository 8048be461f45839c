"""Small pieces that the towers are made of.

Legend: N rows, K candidates, R table rows, D width, L list length, x any leading shape.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.types import ArtworkEncoding, States, TitleEncoding


def table(rows: int, width: int, std: float) -> nn.Embedding:
    """An embedding table with normal initial weights; row 0, unknown, starts at zero and is trained like any other."""
    embedding = nn.Embedding(rows, width)
    nn.init.normal_(embedding.weight, std=std)
    with torch.no_grad():
        embedding.weight[0].zero_()
    return embedding


def scaled_linear(wide: int, narrow: int, std: float, bias: bool = True) -> nn.Linear:
    """A linear layer with normal initial weights of standard deviation `std`, its bias zero."""
    linear = nn.Linear(wide, narrow, bias=bias)
    nn.init.normal_(linear.weight, std=std)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def dots(x_NKD: Tensor, y_ND: Tensor) -> Tensor:
    """Dot products of each of a row's K vectors with the row's own vector, (N, K)."""
    if x_NKD.shape[1] == 1:  # as in training, where a matrix product for each row takes ten times as long
        return (x_NKD.squeeze(1) * y_ND).sum(-1, keepdim=True)
    return (x_NKD @ y_ND.unsqueeze(-1)).squeeze(-1)


def gather_rows(parts: States | TitleEncoding | ArtworkEncoding, index: Tensor) -> Iterator[Tensor]:
    """Each part, computed for distinct rows, gathered at `index` (N,): the parts of N rows, in order."""
    for part in parts:
        flat = part if part.ndim > 1 else part.unsqueeze(-1)
        values = F.embedding(index, flat)
        yield values if part.ndim > 1 else values.squeeze(-1)


def mean_of_known(vectors: nn.Embedding, rows_xL: Tensor) -> Tensor:
    """Mean of the vectors of a list's rows, padding left out; zero for an empty list. (x, L) -> (x, D)."""
    return mean_of_rows(vectors.weight, rows_xL)


def mean_of_rows(table_RD: Tensor, rows_xL: Tensor) -> Tensor:
    """Mean of a table's rows (R, D) at `rows_xL`, padding 0 left out; zero for an empty list. (x, L) -> (x, D)."""
    if torch.compiler.is_exporting():  # a bag's graph would be a loop over its lists
        mask_xL1 = (rows_xL > 0).to(table_RD.dtype).unsqueeze(-1)
        return (table_RD[rows_xL] * mask_xL1).sum(-2) / mask_xL1.sum(-2).clamp(min=1)
    flat = F.embedding_bag(rows_xL.flatten(0, -2), table_RD, mode="mean", padding_idx=0)
    return flat.view(*rows_xL.shape[:-1], table_RD.shape[1])


def repeated(values_P: Tensor, lengths: Sequence[int]) -> Tensor:
    """Each of P values repeated as often as its length says, (sum of lengths,)."""
    return torch.cat([value.expand(length) for value, length in zip(values_P, lengths, strict=True)])


def sums_of_last(values_MTR: Tensor, span: int) -> Tensor:
    """Sums of the last `span` plays' vectors after every number of plays, (M, T, R) -> (M, T + 1, R)."""
    sums_MTR = F.pad(values_MTR.cumsum(1), (0, 0, 1, 0))
    before_MTR = F.pad(sums_MTR, (0, 0, span, 0))[:, : sums_MTR.shape[1]]
    return sums_MTR - before_MTR
