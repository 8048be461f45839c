"""Embeddings: real weights or a refusal, cached by the images' bytes, in the rows of their artworks."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import TINY_EMBEDDING
from PIL import Image

from datamodules.prepare.prepare import PrepareConfig, prepare
from datamodules.shards.artwork_images import HEIGHT, WIDTH, load_images
from datamodules.shards.shard import EMBEDDING, Shards
from export.graphs import build_tower_graphs
from export.parity import TOWER_BOUND, largest_tower_difference
from foundation.errors import UserError
from models.content_towers import ArtworkEmbedding, artwork_vectors
from models.image_encoder import (
    DIRECTIONS,
    HUES,
    ImageEncoder,
    ImageEncoderConfig,
    PixelStatistics,
    Projection,
    WholeStatistics,
)
from models.two_tower import TwoTower, TwoTowerConfig
from serving.bundle.ids import TOWER_WEIGHTS, write_graphs
from tests.tiny_vit import TinyViT
from train.embed import EmbedConfig, embed, load_embedding, load_encoder
from train.run import content_of, sizes_of

SMALL = EmbedConfig(views=64, encoder=ImageEncoderConfig(backbone="resnet18", height=32, width=32, stage_width=4))


@pytest.fixture
def own(simulated: Path, few_shards: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A dataset and shards to write into."""
    shutil.copytree(simulated, tmp_path / "service")
    shutil.copytree(few_shards, tmp_path / "shards")
    return tmp_path / "service", tmp_path / "shards"


def test_only_new_images_are_encoded(own: tuple[Path, Path]) -> None:
    service, shards = own
    first = embed(service, shards, SMALL)
    before, _ = load_embedding(shards)
    assert first["encoded"] == len(set(first["images"]))
    assert embed(service, shards, SMALL) == first
    changed = sorted((service / "images").rglob("*.jpg"))[5]
    Image.new("RGB", (50, 70), (200, 30, 30)).save(changed)
    assert embed(service, shards, SMALL)["encoded"] == 1
    after, _ = load_embedding(shards)
    moved = (before != after).any(1)
    assert int(moved.sum()) == 1
    names = Shards.open(shards).vocabularies["artworks"].values
    assert names[int(moved.nonzero()[0]) - 1] == changed.stem
    assert not after[0].any(), "the unknown artwork has no image"


def test_an_embedding_of_other_artworks_is_refused_and_made_to_fit(own: tuple[Path, Path]) -> None:
    service, shards = own
    old, record = load_embedding(shards)
    names = Shards.open(shards).vocabularies["artworks"].values
    prepare(service, shards, PrepareConfig(validation=0.3, test=0.6))
    moved = Shards.open(shards).vocabularies["artworks"].values
    assert moved != names, "a shorter training period knows fewer artworks, so that rows move"
    with pytest.raises(UserError, match="the artworks changed"):
        load_embedding(shards)
    again = embed(service, shards, TINY_EMBEDDING)
    assert (again["encoded"], again["encoder"]) == (0, record["encoder"])
    new, _ = load_embedding(shards)
    for row, name in enumerate(moved, start=1):
        assert torch.equal(new[row], old[names.index(name) + 1])


def test_weights_come_from_a_file(own: tuple[Path, Path], tmp_path: Path) -> None:
    service, shards = own
    torch.manual_seed(5)
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "mine.pth")
    record = embed(service, shards, replace(SMALL, weights=str(tmp_path / "mine.pth")))
    assert record["weights"] == "resnet18, weights of mine.pth"
    torch.save({key: value for key, value in state.items() if "layer3" not in key}, tmp_path / "cut.pth")
    with pytest.raises(UserError, match="do not fit resnet18"):
        embed(service, shards, replace(SMALL, weights=str(tmp_path / "cut.pth")))
    (tmp_path / "text.pth").write_text("no weights", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read as a state dict"):
        embed(service, shards, replace(SMALL, weights=str(tmp_path / "text.pth")))
    assert load_embedding(shards)[1] == record, "a refused call loses nothing"


VIT = "tests.tiny_vit.TinyViT"


def test_a_vit_is_one_new_class(own: tuple[Path, Path], tmp_path: Path) -> None:
    """By the path of the class alone: its weights come from a file, or are trained here."""
    service, shards = own
    torch.manual_seed(1)
    vit = TinyViT(1, 1)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    config = replace(SMALL, weights=str(tmp_path / "vit.pth"), encoder=replace(SMALL.encoder, backbone=VIT))
    record = embed(service, shards, config)
    assert record["weights"] == f"{VIT}, weights of vit.pth"
    encoder, projection = load_encoder(shards / EMBEDDING)
    names = Shards.open(shards).vocabularies["artworks"].values
    pixels = torch.from_numpy(load_images([service / "images" / f"{name}.jpg" for name in names[:5]]))
    with torch.no_grad():
        small = torch.nn.functional.interpolate(pixels / 255, (32, 32), mode="bilinear", antialias=True)
        maps, token = vit.eval()(small)
        blocks = encoder(pixels)
        torch.testing.assert_close(blocks[6], torch.cat([maps.mean((2, 3)), maps.std((2, 3), correction=0)], dim=1))
        torch.testing.assert_close(blocks[7], token)
        torch.testing.assert_close(load_embedding(shards)[0][1:6], projection(blocks))
    assert record["width"] == 72 + 30 + 64 + 64 + 32 + 48 + 2 * 4
    trained = embed(service, shards, replace(config, weights="train"))
    assert "trained here on" in trained["weights"]
    backbone = load_encoder(shards / EMBEDDING)[0].backbone
    assert backbone is not None
    after = backbone.state_dict()
    assert not torch.equal(after["patches.weight"], vit.state_dict()["patches.weight"])


def test_a_vit_goes_into_the_graph_of_artworks(own: tuple[Path, Path], tmp_path: Path) -> None:
    """Beside vectors, too: artwork.onnx answers as torch does."""
    service, shards = own
    config = replace(SMALL, encoder=replace(SMALL.encoder, backbone=VIT))
    embed(service, shards, config)
    opened = Shards.open(shards)
    encoder, projection = load_encoder(shards / EMBEDDING)
    torch.manual_seed(2)
    vectors = Projection.fit([torch.randn(40, 6)], [4])
    table = torch.cat([load_embedding(shards)[0], torch.randn(len(opened.vocabularies["artworks"]), 4)], dim=1)
    model = TwoTower(TwoTowerConfig(), sizes_of(opened.vocabularies, opened.context), content_of(opened, table)).eval()
    tower = artwork_vectors(model, ArtworkEmbedding(encoder, projection, vectors), (HEIGHT, WIDTH), (8, 6))
    write_graphs(build_tower_graphs(tower, opened.vocabularies), tmp_path, TOWER_WEIGHTS)
    assert largest_tower_difference(tower, model.eval(), tmp_path, opened.vocabularies) < TOWER_BOUND


class OneBatchSize(TinyViT):
    """A backbone that fixes the number of images when it is traced."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [level[: len(images)].reshape(len(images), -1)[:, : self.features] for level in super().forward(images)]


class Unexportable(TinyViT):
    """A backbone whose result hangs on the pixels in a way that no graph has."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return super().forward(images if images.sum().item() > 0 else -images)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (OneBatchSize, r"OneBatchSize: artwork\.onnx would take 2 artworks at a time alone\. .* images\.shape\[0\]"),
        (Unexportable, r"Unexportable: artwork\.onnx cannot be exported \("),
    ],
)
def test_a_backbone_that_no_graph_can_hold_is_named(shards: Path, backbone: type, message: str) -> None:
    opened = Shards.open(shards)
    encoder = ImageEncoder(replace(SMALL.encoder, backbone=f"tests.test_embed.{backbone.__name__}"))
    with torch.no_grad():
        blocks = encoder.eval()(torch.zeros(3, 3, 40, 30, dtype=torch.uint8))
    projection = Projection.fit(blocks, [4] * len(blocks))
    table = torch.randn(len(opened.vocabularies["artworks"]), projection(blocks).shape[1])
    model = TwoTower(TwoTowerConfig(), sizes_of(opened.vocabularies, opened.context), content_of(opened, table)).eval()
    tower = artwork_vectors(model, ArtworkEmbedding(encoder, projection), (HEIGHT, WIDTH), (8, 6))
    with pytest.raises(UserError, match=message):
        build_tower_graphs(tower, opened.vocabularies)


class NoBackbone(torch.nn.Module):
    """A module that does not keep the protocol."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone": "no.such.Module"}, "backbone=no.such.Module: cannot be imported"),
        ({"backbone": "tests.tiny_vit.Other"}, "backbone=tests.tiny_vit.Other: cannot be imported"),
        ({"backbone": "tests.test_embed.NoBackbone"}, "must be a torch module with input_size and features"),
        ({"backbone": VIT, "weights": "hub"}, f"weights=hub: torchvision has no weights of {VIT}"),
    ],
)
def test_a_backbone_that_cannot_be_had_is_named(own: tuple[Path, Path], config: dict[str, str], message: str) -> None:
    service, shards = own
    encoder = replace(SMALL.encoder, backbone=config["backbone"])
    with pytest.raises(UserError, match=message):
        embed(service, shards, replace(SMALL, encoder=encoder, weights=config.get("weights", "train")))


def test_an_unknown_backbone_is_refused_before_any_work() -> None:
    with pytest.raises(
        ValueError,
        match=r"backbone=resnet99: unknown\. Give none, resnet18, resnet34, resnet50, efficientnet-lite0, or a class",
    ):
        ImageEncoderConfig(backbone="resnet99")


def test_training_here_is_said(own: tuple[Path, Path]) -> None:
    service, shards = own
    assert "random filters" in load_embedding(shards)[1]["weights"]
    origin = embed(service, shards, SMALL)["weights"]
    assert "trained here on" in origin
    assert "of a constant" in origin


def test_weights_without_a_backbone_are_refused(own: tuple[Path, Path], tmp_path: Path) -> None:
    service, shards = own
    path = tmp_path / "mine.pth"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"weights=.*mine\.pth: are of a backbone.*Add --encoder\.backbone resnet18"):
        embed(service, shards, replace(TINY_EMBEDDING, weights=str(path)))


def test_images_of_any_mode_and_a_corrupt_one(tmp_path: Path) -> None:
    for mode, name in (
        ("L", "grey.png"),
        ("CMYK", "print.jpg"),
        ("RGBA", "clear.png"),
        ("P", "few.gif"),
        ("RGB", "one.png"),
    ):
        Image.new(mode, (1, 1) if name == "one.png" else (40, 90)).save(tmp_path / name)
    assert load_images(sorted(tmp_path.iterdir())).shape == (5, 3, 144, 96)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "print.jpg").read_bytes()[:200])
    with pytest.raises(UserError, match=r"cut\.jpg: cannot be read as an image"):
        load_images([tmp_path / "cut.jpg"])


def test_pixel_statistics_of_a_cell() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 48, 36)
    statistics = PixelStatistics()(image).reshape(6, 4, 3)
    red, green, blue = image[0, :, 12:24, 24:36]  # cell (1, 2)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    expected = [luma.mean(), (red - green).mean(), (blue - (red + green) / 2).mean(), luma.std(correction=0)]
    torch.testing.assert_close(statistics[:4, 1, 2], torch.stack(expected))
    flat = PixelStatistics()(torch.full((1, 3, 48, 36), 0.5)).reshape(6, 4, 3)
    torch.testing.assert_close(flat[1:], torch.zeros(5, 4, 3), atol=1e-3, rtol=0)


def test_whole_statistics_of_plain_images() -> None:
    """Properties of plain images that are known without computation."""
    red, grey, stripes, half = torch.zeros(4, 3, 40, 30)
    red[0], grey[:] = 1, 0.5
    stripes[:, :, ::6] = stripes[:, :, 1::6] = stripes[:, :, 2::6] = 1
    half[:, :, 15:] = 1
    statistics = WholeStatistics()(torch.stack([red, grey, stripes, half]))
    assert statistics.shape == (4, WholeStatistics.features)
    assert torch.isfinite(statistics).all()
    saturation, hues, edges = (
        statistics[:, 0],
        statistics[:, 9 : 9 + HUES],
        statistics[:, 9 + HUES : 9 + HUES + DIRECTIONS],
    )
    torch.testing.assert_close(saturation, torch.tensor([1.0, 0, 0, 0]), atol=2e-3, rtol=0)
    assert (hues[0] > 0.9).sum() == 1, "one hue"
    assert hues[1:].max() < 1e-3, "none"
    assert (edges[2] > 0.1).sum() == 1, "stripes have one direction"
    assert edges[:2].max() < 1e-3
    dark, light = statistics[:, 5], statistics[:, 6]
    torch.testing.assert_close(torch.stack([dark, light])[:, 3], torch.tensor([0.5, 0.5]))
    mirror = statistics[:, -5]
    torch.testing.assert_close(mirror, torch.tensor([0.0, 0, 1, 1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(statistics[3], WholeStatistics()(half[None].flip(3))[0], atol=1e-5, rtol=0)


def test_the_projection_survives_constant_features_and_keeps_variance() -> None:
    torch.manual_seed(0)
    block = torch.cat([torch.randn(300, 6) @ torch.randn(6, 10), torch.ones(300, 2)], dim=1)
    projection = Projection.fit([block, block], [12, 4])
    embedded = projection([block, block])
    assert embedded.shape == (300, 16)
    assert torch.isfinite(embedded).all()
    assert not embedded[:, 10:12].any()
    np.testing.assert_allclose(embedded[:, 12:].var(0, correction=0).mean(), 1, rtol=1e-4)
