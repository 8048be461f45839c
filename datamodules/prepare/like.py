"""What shards take from those that they are prepared like: their context features and their outcome delay, or a refusal.

In: the older shards and what is asked for now. Out: what holds for both; UserError where the two do not go together.
"""

from datamodules.shards.shard import Shards
from foundation.context import ContextFeature, context_features
from foundation.errors import UserError

OUTCOME_DELAY = "1h"
"""After which time the outcome of an impression is known, unless it is given."""


def require_same_context(model: Shards, declared_features: list[ContextFeature]) -> None:
    """UserError where the config declares other context features than those of the shards it shall be like."""
    of_model = {feature.name: feature for feature in model.context}
    declared = {feature.name: feature for feature in context_features(declared_features)}
    remedy = "Leave --context out: shards like others have their features."
    if declared_features and declared.keys() != of_model.keys():
        raise UserError(
            f"context={sorted(declared.keys() - of_model) or sorted(of_model.keys() - declared)}: {model.folder} has the context "
            f"features {', '.join(sorted(of_model))}. {remedy}"
        )
    for feature in declared_features:
        other = of_model[feature.name]
        for field_name in ("kind", "source", "read_by", "crossed_with", "prior", "reference", "mean", "std"):
            own, theirs = getattr(feature, field_name), getattr(other, field_name)
            if own is not None and own != theirs:
                option = {"source": "column", "read_by": "terms"}.get(field_name, field_name)
                raise UserError(
                    f"context feature {feature.name!r}: {option}={own!r}, and in {model.folder} it is {theirs!r}. {remedy}"
                )


def outcome_delay_of(model: Shards | None, given: str) -> str:
    """The given one, or that of the shards that new ones are like; UserError where another one than the default is given."""
    if model is None:
        return given
    theirs = str(model.manifest["outcome_delay"])
    if given not in (theirs, OUTCOME_DELAY):
        raise UserError(
            f"outcome_delay={given}: {model.folder} was prepared with {theirs}, and what counts as known must be "
            "the same. Leave --outcome-delay out: shards like others have theirs."
        )
    return theirs
