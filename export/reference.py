"""The reference histograms of a bundle: what it is asked, and what the log chose, in the validation period of its own shards."""

import numpy as np

from datamodules.shards.shard import VALIDATION, Shards
from serving.bundle.bundle import Bundle
from serving.bundle.metadata import Reference
from serving.bundle.reference import BOUNDS
from serving.scoring.drift_counts import MAX_IMPRESSIONS, SEED, observe, sampled


def reference_of(bundle: Bundle, validation: Shards, most: int = MAX_IMPRESSIONS) -> Reference | None:
    """Counts over at most `most` validation impressions, by the bundle's own graph; None where there are none."""
    rows = [np.flatnonzero(shard.split == VALIDATION) for shard in validation.shards]
    observations = observe(bundle, validation.shards, sampled(rows, most))
    if not observations.impressions:
        return None
    return {
        "impressions": observations.impressions,
        "sampled_from": sum(len(some) for some in rows),
        "seed": SEED,
        "histograms": {
            name: {
                "bounds": list(BOUNDS[name]),
                "counts": counted.counts.tolist(),
                "design_effect": counted.design_effect,
                "effect_spread": counted.effect_spread,
            }
            for name, counted in observations.counted().items()
        },
    }
