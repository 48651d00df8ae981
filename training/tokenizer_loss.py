# SPDX-License-Identifier: Apache-2.0
"""Loss, optimiser and learning rate of the published tokenizer post-training.

For the published run (10 000 iterations from 0) the loss is ``mean |x - y| + 0.1 * perceptual``; the Gram term starts
at iteration 500 000 and there is no adversarial term. VGG-16 weights are not shipped: without them use
``TokenizerLoss(None)``, which is the colour term alone and a different objective.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidargen_ros.errors import CheckpointError, ConfigError

LEARNING_RATE, WARMUP = 4e-5, 5000
BETAS, EPS, WEIGHT_DECAY = (0.5, 0.999), 1e-8, 0.01
GRADIENT_NORM = 1.0
GRAM_START = 500_000  # iteration at which the Gram term comes in and the perceptual weight falls

VGG16_WIDTHS = (64, 128, 256, 512, 512)
# Index of each convolution in the published VGG-16 stack, by stage. A stage but the first begins with max-pooling; the
# features are those after the last ReLU of a stage (relu1_2, relu2_2, relu3_3, relu4_3, relu5_3).
VGG16_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
STAGE_WEIGHTS = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
COLOUR_MEAN, COLOUR_STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]


class Vgg16(nn.Module):
    """Features of five stages of VGG-16 (Simonyan and Zisserman 2015, arXiv 1409.1556), frozen."""

    def __init__(self, widths: Sequence[int] = VGG16_WIDTHS) -> None:
        super().__init__()
        cin = 3
        for number, (width, indices) in enumerate(zip(widths, VGG16_STAGES, strict=True), start=1):
            convs = nn.ModuleDict()
            for index in indices:
                convs[str(index)] = nn.Conv2d(cin, width, 3, padding=1)
                cin = width
            self.add_module(f"slice{number}", convs)
        self.register_buffer("mean", torch.tensor(COLOUR_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(COLOUR_STD)[:, None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features ``[N, C_k, h_k, w_k]`` of images ``[N, 3, H, W]`` in [-1, 1]."""
        h, features = (x - self.mean) / self.std, []
        for number, stage in enumerate(self.children()):
            h = F.max_pool2d(h, 2) if number else h
            for conv in stage.values():
                h = F.relu(conv(h))
            features.append(h)
        return features

    @classmethod
    def from_file(cls, path: str | Path) -> Vgg16:
        """ImageNet classification weights: the file ``vgg16-397923af.pth`` that torchvision downloads."""
        if not Path(path).is_file():
            raise CheckpointError(
                f"{path}: no VGG-16 weights; get vgg16-397923af.pth from download.pytorch.org/models"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        return cls.from_state(state)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Vgg16:
        """From a state dict with keys ``features.N.*`` (torchvision) or ``sliceK.N.*``."""
        stage_of = {index: number for number, stage in enumerate(VGG16_STAGES, start=1) for index in stage}
        renamed = {}
        for key, value in state.items():
            prefix, *rest = key.split(".")
            if prefix == "features":
                renamed[f"slice{stage_of[int(rest[0])]}.{'.'.join(rest)}"] = value
            elif prefix.startswith("slice"):
                renamed[key] = value
        widths = [
            renamed[f"slice{k}.{stage[0]}.bias"].numel() for k, stage in enumerate(VGG16_STAGES, start=1)
        ]
        network = cls(widths)
        network.load_state_dict(renamed)
        return network


class TokenizerLoss(nn.Module):
    """``(images, reconstructions, iteration)`` to weighted terms by name; their sum is the loss.

    Images are ``[N, 3, H, W]`` or clips ``[B, 3, T, H, W]`` in [-1, 1].
    """

    def __init__(self, vgg: Vgg16 | None, reduction: str = "mean") -> None:
        super().__init__()
        self.vgg = vgg
        self.reduction = reduction

    def forward(self, x: Tensor, y: Tensor, iteration: int) -> dict[str, Tensor]:
        terms = {"colour": reduce((x - y).abs(), self.reduction)}
        if self.vgg is None:
            return terms
        late = iteration >= GRAM_START
        real, made = self.vgg(_images(x)), self.vgg(_images(y))
        terms["perceptual"] = (0.073 if late else 0.1) * perceptual(real, made).mean()
        if late:
            clips = x.shape[0]
            terms["gram"] = (
                0.062
                * gram([_clip_rows(f, clips) for f in real], [_clip_rows(f, clips) for f in made]).mean()
            )
        return terms


def perceptual(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """Distance of each image ``[N]`` from features ``[N, C, h, w]``: weighted mean absolute differences."""
    terms = [w * (a - b).abs().mean((1, 2, 3)) for w, a, b in zip(STAGE_WEIGHTS, real, made, strict=True)]
    return torch.stack(terms).sum(0)


def gram(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """Distance of each clip ``[B]`` from features ``[B, C, positions]``: weighted mean squares of Gram differences."""
    terms = []
    for weight, a, b in zip(STAGE_WEIGHTS, real, made, strict=True):
        difference = (a @ a.transpose(1, 2) - b @ b.transpose(1, 2)) / a.shape[-1]
        terms.append(weight * difference.square().mean((1, 2)))
    return torch.stack(terms).sum(0)


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Divergence of the posterior from a unit normal, elementwise; the published weight is 1e-6, for VAEs only."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


KL_WEIGHT = 1e-6


def reduce(values: Tensor, how: str) -> Tensor:
    """``mean``, ``sum_per_frame`` (sum over the number of images) or ``sum`` (over the batch size)."""
    frames = values.shape[0] * (values.shape[2] if values.ndim == 5 else 1)
    divisors = {"mean": values.numel(), "sum_per_frame": frames, "sum": values.shape[0]}
    if how not in divisors:
        raise ConfigError(f"loss reduction {how!r} is unknown; use one of {', '.join(divisors)}")
    return values.sum() / divisors[how] if how != "mean" else values.mean()


def _images(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x


def _clip_rows(features: Tensor, clips: int) -> Tensor:
    """``[B * T, C, h, w]`` to ``[B, C, T * h * w]``."""
    return features.unflatten(0, (clips, -1)).transpose(1, 2).flatten(2)


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = LEARNING_RATE) -> torch.optim.AdamW:
    """AdamW as published."""
    return torch.optim.AdamW(parameters, lr=lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)


def make_schedule(
    optimizer: torch.optim.Optimizer, warmup: int = WARMUP
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over ``warmup`` iterations, then constant."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / warmup, 1.0))


def train_step(
    network: nn.Module,
    loss: TokenizerLoss,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batch: Tensor,
    iteration: int,
) -> dict[str, float]:
    """One step on images ``[N, 3, H, W]``: weighted terms, ``loss``, ``lr`` and the gradient norm before clipping.

    Raises ``RuntimeError`` (torch's own) if that norm is not finite, before any weight has changed.
    """
    optimizer.zero_grad(set_to_none=True)
    terms = loss(batch, network(batch), iteration)
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM, error_if_nonfinite=True)
    report = {name: value.item() for name, value in terms.items()}
    report |= {"loss": total.item(), "lr": optimizer.param_groups[0]["lr"], "grad_norm": norm.item()}
    optimizer.step()
    schedule.step()
    return report


def to_bytes(x: Tensor) -> Tensor:
    """[-1, 1] to 0..255 as logged in post-training. Clamped: without that, values out of range would wrap around."""
    return (((x.clamp(-1, 1) + 1) / 2) * 255 + 0.5).to(torch.uint8)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit images ``[N, C, H, W]``, averaged over images."""
    mse = (a.double() - b.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(255**2 / (mse + torch.finfo(torch.float32).eps))).mean().item()


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of 8-bit images ``[N, C, H, W]``, averaged over channels and images.

    Uniform 7 x 7 windows that lie inside the image and sample covariance: the defaults of scikit-image.
    """
    size = 7
    x, y = a.double(), b.double()
    unbiased = size**2 / (size**2 - 1)
    mean_x, mean_y = F.avg_pool2d(x, size, 1), F.avg_pool2d(y, size, 1)
    var_x = unbiased * (F.avg_pool2d(x * x, size, 1) - mean_x**2)
    var_y = unbiased * (F.avg_pool2d(y * y, size, 1) - mean_y**2)
    cov = unbiased * (F.avg_pool2d(x * y, size, 1) - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (
        (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    )
    return similarity.mean().item()
