"""Does the bundle say what the model says? Every impression of a period, by two ways that share no code.

One way is the training's: shards, members encoded once for all their impressions, torch. The other is the serving
team's: raw tables, one request per impression, ONNX Runtime. They meet in the scores.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import torch

from datamodules.contract import UserError
from datamodules.feed import Feed
from datamodules.shards import TEST, Shards
from models.two_tower import Context, TwoTower


@torch.no_grad()
def compare(model: TwoTower, shards: Path, scores: Path) -> float:
    """Largest absolute difference of a click probability over the shards' test period; scores must cover it."""
    table = pads.dataset(sorted(scores.glob("*.parquet"))).to_table(columns=["impression_id", "click_probability"])
    listed = table["click_probability"].combine_chunks()
    start, flat = listed.offsets.to_numpy(), listed.values.to_numpy()
    ids = np.array(table["impression_id"].cast(pa.binary()).to_pylist(), dtype="S")
    order = np.argsort(ids)
    ids, start, width = ids[order], start[:-1][order], np.diff(start)[order]
    opened = Shards.open(shards)
    feed = Feed(opened.shards, TEST, reach=model.config.history.reach, impressions=4096, shuffle=False, candidates=True)
    names = [shard.ids() for shard in opened.shards]
    worst = 0.0
    for batch in feed:
        wanted = names[batch.shard][batch.index.numpy()]
        place = np.searchsorted(ids, wanted).clip(max=len(ids) - 1)
        if not (ids[place] == wanted).all():
            raise UserError(f"{scores}: lacks impressions of the test period. Score the dataset again.")
        context = Context(batch.country, batch.device, batch.hour, batch.row, batch.column, batch.play_count)
        plays = (batch.play_title, batch.play_artwork, batch.play_watched, batch.play_time)
        terms = model(*plays, batch.member, batch.position, context, batch.title, batch.artworks)
        ours = model.probabilities(terms)[0].numpy()
        column = np.arange(ours.shape[1])
        there = column < width[place][:, None]
        theirs = flat[np.where(there, start[place][:, None] + column, 0)]
        worst = max(worst, float(np.abs(np.where(there, ours - theirs, 0.0)).max()))
    return worst
