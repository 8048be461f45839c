"""Normal priors of the ranker's weights: a term added to the loss, so that training ends at the most probable weights.

A prior of strength s says that a weight is normal around 0 with variance 1 / s: it counts as much as s impressions with an
uncertain click, whatever the log's length, so that a longer log overrules it. It holds the product of two linear towers
to low rank (Srebro, Rennie and Jaakkola, Maximum-Margin Matrix Factorization, 2004). Decoupled weight decay, dropout and early
stopping, tried instead, learned less from the same clicks (docs/experiments.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from torch import Tensor

from foundation.context import ContextFeature
from foundation.errors import UserError
from models.two_tower import TwoTower


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Strengths of the priors by kind of weight; 0 leaves a kind to weight decay."""

    appeal: float = 100.0
    """Weights of the artwork query, from histories and devices, and of the artwork vectors."""
    context: float = 1000.0
    """Weights of the artwork query by country and by hour of the day."""
    artwork: float = 300.0
    """Weights of an artwork's bias: its own, and that of its content."""
    affinity: float = 60.0
    """Weights of the title query, from histories, of the title vectors and of titles' biases."""
    engaged: float = 200.0
    """Weights of engagement given a click."""
    distance: float = 30.0
    """Weights of plays in the mean of a history, by distance."""
    presentation: float = 10.0
    """Weights of the presentation: positions, devices, hours and countries."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise UserError(f"prior.{field.name}={getattr(self, field.name)}: must be at least 0.")


PARAMETER_GROUPS = {
    "appeal": (
        "artwork_query.weight",
        "artwork_query_state.weight",
        "artwork_vector.weight",
    ),
    "artwork": ("artwork_bias.weight", "artwork_content_bias.weight"),
    "affinity": (
        *("title_query.weight", "title_query_state.weight", "title_vector.weight"),
        *("title_content_bias.weight", "title_bias.weight"),
    ),
    "engaged": (
        *("engagement.member.weight", "engagement.title.weight", "engagement.title_bias.weight"),
        "engagement.artwork_bias.weight",
    ),
    "distance": ("recent.band.bias_1S",),
}
"""Parameters of the ranker by kind, those of context features left out: see `parameter_groups`."""
OPTIONAL_PARAMETERS = frozenset({"artwork_query_state.weight", "title_query_state.weight"})
"""Parameters that a ranker has only where the click reads the learned state."""


def parameter_groups(features: Iterable[ContextFeature]) -> dict[str, list[str]]:
    """Parameters of the ranker by kind, a table for every context feature and each term that reads it included."""
    groups = {kind: list(names) for kind, names in PARAMETER_GROUPS.items()}
    groups |= {"context": [], "presentation": []}
    for feature in features:
        for term, module, kind in (
            ("appeal", "artwork_query_context", feature.prior),
            ("presentation", "presentation.context", "presentation"),
            ("engagement", "engagement.context", "engaged"),
        ):
            if term in feature.read_by:
                groups[kind].append(f"{module}.tables.{feature.name}_rows.weight")
    return groups


class Prior:
    """The priors of one model's weights."""

    def __init__(self, model: TwoTower, config: PriorConfig) -> None:
        self.model, by_name = model, dict(model.named_parameters())
        groups = parameter_groups(model.sizes.context)
        missing = {name for names in groups.values() for name in names} - by_name.keys() - OPTIONAL_PARAMETERS
        assert not missing, f"no parameters of the ranker, so no prior reaches them: {sorted(missing)}"
        self.parts = [
            (getattr(config, kind), [by_name[name] for name in names if name in by_name])
            for kind, names in groups.items()
            if getattr(config, kind)
        ]

    def parameters(self) -> set[int]:
        """Python ids of the parameters that have a prior."""
        return {id(parameter) for _, parameters in self.parts for parameter in parameters}

    def loss(self) -> Tensor:
        """Minus the logarithm of the prior density, up to a constant, in units of one impression's log loss."""
        penalty = self.model.presentation.base.new_zeros(())
        for strength, parameters in self.parts:
            for parameter in parameters:
                penalty = penalty + 0.5 * strength * parameter.square().sum()
        return penalty
