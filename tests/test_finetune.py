"""The image encoder trained with the ranker: starts where the embedding is, encodes an image once, and resumes exactly."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_EMBEDDING
from rich.console import Console
from safetensors.torch import load_file

from datamodules.feed.datamodule import Cursor
from datamodules.feed.impression_feed import Feed
from datamodules.prepare.prepare import prepare
from datamodules.shards.shard import EMBEDDING, TRAIN, Shards
from foundation.errors import UserError
from models.two_tower import TwoTower, TwoTowerConfig
from train.config import FitConfig
from train.embed import EMBEDDING_RECORD, ENCODER, PIXEL_ROW, PIXELS, embed, encoder_fingerprint, load_embedding
from train.finetune import FineTuneConfig, ImageTower
from train.fit import fit
from train.optimiser import OptimiserConfig
from train.prior import PriorConfig
from train.run import WEIGHTS, Run, content_of, sizes_of
from train.task import RankerTask, losses

RESNET = replace(TINY_EMBEDDING, views=64, encoder=replace(TINY_EMBEDDING.encoder, backbone="resnet18"))
FINETUNE = FineTuneConfig(learning_rate=1e-3, images=12)
CONFIG = FitConfig(epochs=1, validations_per_epoch=2, batch=128, patience=9, finetune=FINETUNE)


@pytest.fixture(scope="module")
def with_pixels(simulated: Path, few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of their own: pixels are added to the very embedding that the others have."""
    out = tmp_path_factory.mktemp("pixels") / "shards"
    shutil.copytree(few_shards, out)
    embed(simulated, out, RESNET)
    before = (out / EMBEDDING / "embedding.npy").read_bytes(), encoder_fingerprint(out)
    embed(simulated, out, replace(RESNET, pixels=True))
    assert ((out / EMBEDDING / "embedding.npy").read_bytes(), encoder_fingerprint(out)) == before
    return out


@pytest.fixture(scope="module")
def tuned(with_pixels: Path) -> Path:
    run = with_pixels.parent / "run"
    fit(with_pixels, run, CONFIG)
    return run


def task_of(shards: Path, images: int = 10_000) -> tuple[RankerTask, Feed]:
    opened = Shards.open(shards)
    torch.manual_seed(0)
    model = TwoTower(
        TwoTowerConfig(), sizes_of(opened.vocabularies, opened.context), content_of(opened, load_embedding(shards)[0])
    )
    tower = ImageTower(shards, FineTuneConfig(learning_rate=1e-3, images=images), decay=0.9)
    task = RankerTask(
        model, OptimiserConfig(), PriorConfig(), impressions=1000, total_steps=10, seed=0, cursor=Cursor(), tower=tower
    )
    return task, Feed(opened.shards, TRAIN, reach=50, impressions=128, shuffle=True)


def test_it_starts_at_the_shards_embedding(with_pixels: Path) -> None:
    task, feed = task_of(with_pixels)
    assert task.tower is not None
    torch.testing.assert_close(task.tower.table(), task.model.artwork_image_AE, atol=1e-4, rtol=1e-4)
    batch = next(iter(feed))
    model = task.model.eval()
    frozen = losses(model, batch)[0]
    model.batch_images = task.tower.batch_images(batch)
    shown = torch.unique(torch.cat([batch.artworks.flatten(), batch.play_artwork.flatten()]))
    assert torch.equal(model.batch_images[0], shown[shown > 0])
    torch.testing.assert_close(losses(model, batch)[0], frozen, atol=1e-4, rtol=1e-4)


def test_each_distinct_image_is_encoded_once(with_pixels: Path, tmp_path: Path) -> None:
    """Also where two artworks share an image."""
    out = tmp_path / "shards"
    shutil.copytree(with_pixels, out)
    rows = np.load(out / EMBEDDING / PIXEL_ROW)
    rows[2:20:2] = rows[1:19:2]
    np.save(out / EMBEDDING / PIXEL_ROW, rows)
    record = json.loads((out / EMBEDDING / EMBEDDING_RECORD).read_text(encoding="utf-8"))
    (out / EMBEDDING / EMBEDDING_RECORD).write_text(json.dumps(record | {"files": {}}), encoding="utf-8")
    for limit in (10_000, 30):
        task, feed = task_of(out, limit)
        assert task.tower is not None
        given: list[int] = []
        task.tower.encoder.register_forward_hook(lambda _, images, __, given=given: given.append(len(images[0])))
        batch = next(iter(feed))
        touched = torch.unique(torch.cat([batch.artworks.flatten(), batch.play_artwork.flatten()]))
        distinct = {int(rows[a]) for a in touched if a}
        assert len(distinct) < len(touched[touched > 0])
        known, vectors = task.tower.batch_images(batch)
        assert given == [min(len(distinct), limit)]
        assert len(known) == len(vectors) <= len(touched)


def test_gradients_reach_the_first_layer(with_pixels: Path) -> None:
    task, feed = task_of(with_pixels)
    assert task.tower is not None
    task.train()
    batch = next(iter(feed))
    task.model.batch_images = task.tower.batch_images(batch)
    losses(task.model, batch)[0].backward()
    gradients = [p.grad for p in task.tower.encoder.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    first = next(task.tower.encoder.parameters()).grad
    assert first is not None
    assert first.abs().max() > 0
    assert not any(m.training for m in task.tower.encoder.modules())


def test_the_run_holds_what_it_was_trained_to(with_pixels: Path, tuned: Path, simulated: Path, tmp_path: Path) -> None:
    before, after = load_file(with_pixels / EMBEDDING / ENCODER), load_file(tuned / ENCODER)
    assert before.keys() == after.keys()
    assert not torch.equal(before["encoder.backbone.conv1.weight"], after["encoder.backbone.conv1.weight"])
    assert torch.equal(before["encoder.backbone.bn1.running_mean"], after["encoder.backbone.bn1.running_mean"])
    short = FitConfig(epochs=1, validations_per_epoch=1, batch=128)
    # a new day is embedded with it, and warm training takes the two together, but not with the encoder of before
    prepare(simulated, tmp_path / "day", like=with_pixels)
    with pytest.raises(UserError, match="embedded by another encoder"):
        embed(simulated, tmp_path / "day", TINY_EMBEDDING)
        fit(tmp_path / "day", tmp_path / "next", short, from_run=tuned)
    embed(simulated, tmp_path / "day", replace(RESNET, weights=str(tuned)))
    table = Run.open(tuned).model.artwork_image_AE
    torch.testing.assert_close(load_embedding(tmp_path / "day")[0], table, atol=1e-4, rtol=1e-4)
    fit(tmp_path / "day", tmp_path / "next", short, from_run=tuned)


def test_it_resumes_bit_for_bit(
    with_pixels: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = RankerTask.training_step

    def faulty(self: RankerTask, batch, batch_idx: int) -> torch.Tensor:
        if self.cursor.step == 1:
            raise RuntimeError("nothing anybody expects")
        return sound(self, batch, batch_idx)

    often = replace(CONFIG, checkpoint_minutes=1e-9)
    with monkeypatch.context() as patched:
        patched.setattr(RankerTask, "training_step", faulty)
        with pytest.raises(RuntimeError, match="nothing anybody"):
            fit(with_pixels, tmp_path / "run", often)
    fit(with_pixels, tmp_path / "run", often, console=Console(quiet=True))
    for name in (WEIGHTS, ENCODER):
        assert (tmp_path / "run" / name).read_bytes() == (tuned / name).read_bytes()


def test_what_cannot_be_trained_is_named(few_shards: Path, tmp_path: Path) -> None:
    assert not (few_shards / EMBEDDING / PIXELS).exists()
    with pytest.raises(UserError, match=r"holds no pixels.*keyart embed DATASET .* --pixels"):
        fit(few_shards, tmp_path / "run", CONFIG)
    for name, value in (("learning_rate", -1.0), ("weight_decay", -1.0), ("images", 0)):
        with pytest.raises(UserError, match=f"finetune.{name}={value}"):
            FineTuneConfig(**{name: value})  # pyright: ignore[reportArgumentType]


def test_without_a_backbone_nothing_is_trained(simulated: Path, few_shards: Path, tmp_path: Path) -> None:

    own = shutil.copytree(few_shards, tmp_path / "shards")
    embed(simulated, own, replace(TINY_EMBEDDING, pixels=True))
    with pytest.raises(
        UserError, match=r"has no backbone, which finetune\.learning_rate=0\.001 trains\. Run keyart embed"
    ):
        fit(own, tmp_path / "run", CONFIG)
