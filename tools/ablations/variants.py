# SPDX-License-Identifier: Apache-2.0
"""The variants: each is the shipped student with one thing changed, and the questions they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lidargen_ros.cameras.align import DEFAULT_HYPOTHESES
from lidargen_ros.models.student import Circular, Condition, Student, StudentConfig
from training.student.rigs import Bank

from .eyes import Aligned, Attending
from .scenes import EXTRA_ROWS, Frames

GROUND, FAR = 0, len(DEFAULT_HYPOTHESES) - 1
ALL_DEPTHS = tuple(range(len(DEFAULT_HYPOTHESES)))


@dataclass(frozen=True)
class Variant:
    """The defaults are the shipped design.

    Attributes:
        depths: hypotheses at which pixels are looked up; none: cross-attention.
        drawn: also measure drawn samples.
    """

    name: str
    says: str
    seed: int = 0
    depths: tuple[int, ...] = ALL_DEPTHS
    answer: Literal["log", "inverse", "latent"] = "log"
    flow_share: float = 0.25
    circular: bool = True
    higher: bool = False
    drawn: bool = False


REFERENCE = Variant("reference", "as shipped", drawn=True)
# In the order in which they run: a run that is cut short keeps what matters most.
VARIANTS = (
    REFERENCE,
    replace(REFERENCE, name="other_seed", says="as shipped, another seed: what noise is", seed=1),
    Variant("infinity", "pixels at infinity only", depths=(FAR,)),
    Variant("attention", "no alignment: cross-attention from rays to picture patches", depths=()),
    Variant("latent", "a tokenizer's latent instead of native patches", answer="latent", drawn=True),
    Variant("regression_only", "no flow matching", flow_share=0.0),
    Variant("flow_only", "no regression", flow_share=1.0, drawn=True),
    Variant("ground_infinity", "pixels at the nominal ground and at infinity", depths=(GROUND, FAR)),
    Variant("four_depths", "no look-ups at 30 and 70 m", depths=(0, 1, 2, FAR)),
    Variant("zero_padding", "zeros beyond the first and last column", circular=False),
    Variant("inverse_range", "inverse instead of logarithmic range", answer="inverse"),
    Variant("higher", f"the encoder also sees {EXTRA_ROWS} rows of rays above the top beam", higher=True),
)


class Question(NamedTuple):
    """``figures``: those of the table beyond the common ones."""

    text: str
    variants: tuple[str, ...]
    figures: tuple[str, ...] = ()


DRAWN = ("drawn_mae_m", "drawn_spread_m_unseen", "drawn_coverage_50_unseen")
QUESTIONS = (
    Question(
        "How do pixels reach the rays?",
        ("infinity", "ground_infinity", "four_depths", "reference", "attention"),
    ),
    Question("Native patches or a tokenizer's latent?", ("reference", "latent"), DRAWN),
    Question(
        "Regression, flow matching, or both in one network?",
        ("regression_only", "reference", "flow_only"),
        DRAWN,
    ),
    Question("Circular or zero padding?", ("reference", "zero_padding"), ("mae_m_seam", "abs_rel_seam")),
    Question("Logarithmic or inverse range?", ("reference", "inverse_range")),
    Question("Does the encoder need to see above the top beam?", ("reference", "higher")),
    Question("How large is noise?", ("reference", "other_seed"), DRAWN),
)


class HigherStudent(Student):
    """Encodes ``EXTRA_ROWS`` more rows than it decodes; at every scale the sensor's rows are the last ones."""

    def encode(self, pixels: Tensor, rays: Tensor, *others: Any, **named: Any) -> Condition:
        condition = super().encode(pixels, rays, *others, **named)
        share = 1 - EXTRA_ROWS / pixels.shape[2]
        return Condition(*(features[:, :, -round(features.shape[2] * share) :] for features in condition))


class LatentStudent(Student):
    """Denoises a latent of ``channels`` numbers of unit variance per patch; a frozen tokenizer decodes it."""

    def __init__(self, config: StudentConfig, channels: int) -> None:
        super().__init__(config)
        self.denoiser.embed = nn.Conv2d(channels, config.patch, 1)
        self.decoder = nn.Conv2d(config.patch, channels, 1)  # type: ignore[assignment]

    def denoise(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:  # type: ignore[override]
        raw = self.decoder(self.denoiser(x, t, condition)).float()
        t = t.float()[:, None, None, None]
        keep = 1 - t
        variance = (
            keep**2 + t**2
        )  # preconditioned as in ``models.student.precondition``, for data of deviation 1
        return keep / variance * x.float() + t / variance.sqrt() * raw


class Model(nn.Module):
    """Eyes and student: pictures, a noisy answer and its level in, an estimate out."""

    def __init__(self, eyes: nn.Module, student: Student) -> None:
        super().__init__()
        self.eyes, self.student = eyes, student

    def look(self, frames: Frames) -> tuple[Tensor, Tensor]:
        pixels, rays = self.eyes(frames)
        return pixels.contiguous(memory_format=torch.channels_last), rays.contiguous(
            memory_format=torch.channels_last
        )

    def forward(self, frames: Frames, x: Tensor, t: Tensor) -> Any:
        pixels, rays = self.look(frames)
        return self.student(pixels, rays, x, t)


def build(variant: Variant, config: StudentConfig, bank: Bank, shape: Sequence[int]) -> Model:
    """The network of a variant, weights drawn from its seed; ``shape`` of its answer."""
    torch.manual_seed(variant.seed)
    if variant.depths:
        config = replace(config, hypotheses=len(variant.depths))
    if variant.answer == "latent":
        student: Student = LatentStudent(replace(config, spread=False), shape[0])
    else:
        student = (HigherStudent if variant.higher else Student)(config)
    if not variant.circular:
        pad_with_zeros(student)
    attending = not variant.depths
    eyes = (
        Attending(bank, config.hypotheses)
        if attending
        else Aligned(bank, variant.depths, higher=variant.higher)
    )
    return Model(eyes, student).to(bank.grid.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def pad_with_zeros(student: nn.Module) -> None:
    """Convolutions keep their own zeros at the seam instead of what lies beyond it."""
    for module in student.modules():
        if isinstance(module, Circular):
            module.reach = 0
