# SPDX-License-Identifier: Apache-2.0
"""A student as the graphs of one frame on a torch device: from the pixels of the cameras to points, nothing on the host.

Beside the three exported graphs there are ``pixels`` (shrinks the pictures into the atlas), ``carry`` (moves the sweep
before to where the vehicle is now, for networks that read it), ``sample2`` ... (several steps without a word to the host)
and ``points`` (thresholds, and the points themselves).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..engines.base import Signature, Spec
from ..engines.torch_engine import TorchGraph
from ..sensors import Sensor
from ..student_sampling import draw
from .carry import CarryGraph
from .student import FINE, PATCH, Condition, Student
from .student_graphs import DecoderGraph, DenoiserGraph, EncoderGraph, denoiser_outputs, encoder_inputs

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SAMPLED_STEPS = range(2, 9)


class PixelsGraph(nn.Module):
    """``(images [V, H, W, 3] uint8, row_weights [h, H], column_weights [w, W]) -> atlas [V h, w, 3] uint8``.

    Two matrix products; equal to OpenCV's INTER_AREA within one grey level (``cameras.align.area_weights``).
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        # Sums of bytes: half precision keeps them to a quarter of a level, bfloat16 would not.
        self.dtype = torch.float16 if dtype == torch.bfloat16 else dtype

    def forward(self, images: Tensor, row_weights: Tensor, column_weights: Tensor) -> Tensor:
        views, height, width, channels = images.shape
        rows = row_weights.to(self.dtype) @ images.to(self.dtype).reshape(views, height, width * channels)
        planes = rows.reshape(-1, width, channels).transpose(1, 2)
        atlas = (planes @ column_weights.to(self.dtype).T).transpose(1, 2)
        return atlas.round().clamp(0, 255).to(torch.uint8)


class SampleGraph(nn.Module):
    """``(noise [1, 4, R, C], condition) -> code, logit, intensity [1, R, C]`` in a fixed number of steps."""

    def __init__(self, denoiser: DenoiserGraph, steps: int) -> None:
        super().__init__()
        self.denoiser, self.steps = denoiser, steps

    def forward(self, noise: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def denoise(x: Tensor, t: float) -> tuple[Tensor, ...]:
            return self.denoiser(x, torch.full((1,), t, device=x.device), *condition)

        return draw(denoise, noise, self.steps)


class PointsGraph(nn.Module):
    """``(range_m, probability [R, C], intensity [1, R, C], rays [F, R, C], limits [3]) -> range_map, reflected [R, C],
    cloud [R, C, 4]``.

    ``limits``: lowest probability of a return, nearest and farthest range. ``range_map`` is 0 and ``reflected`` (the
    intensity of returns) is 0 where nothing returns; ``cloud`` holds x, y, z in metres, NaN there, and the intensity.
    """

    def forward(
        self, range_m: Tensor, probability: Tensor, intensity: Tensor, rays: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        returned = (probability >= limits[0]) & (range_m >= limits[1]) & (range_m <= limits[2])
        range_map = range_m.where(returned, 0.0)
        reflected = intensity[0].where(returned, 0.0)
        places = rays[:3] * range_m.where(returned, torch.nan)
        return range_map, reflected, torch.cat([places, reflected[None]]).permute(1, 2, 0).contiguous()


class Cast(nn.Module):
    """Runs a network in the type of its weights; 4-d tensors get their channels last, which tensor cores read best."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, *inputs: Any) -> Any:
        return self.network(*(self._cast(v) if isinstance(v, Tensor) else v for v in inputs))

    def _cast(self, value: Tensor) -> Tensor:
        if value.dim() == 4:
            return value.to(self.dtype, memory_format=torch.channels_last)
        return value.to(self.dtype)


def frame_graphs(
    student: Student, sensor: Sensor, *, precision: str = "fp32", pixels: bool = True
) -> dict[str, TorchGraph]:
    """The graphs of a folded student, which is changed on the way.

    Args:
        precision: of the network; look-ups, the last layer and all that follows it stay float32.
        pixels: with the graph that shrinks pictures; worth it on a GPU only.
    """
    dtype = PRECISIONS[precision]
    student = student.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    student.decoder.out.float()
    encoder = EncoderGraph(student)
    encoder.encoder = Cast(student.encoder, dtype)  # type: ignore[assignment]
    student.denoiser = Cast(student.denoiser, dtype)  # type: ignore[assignment]
    denoiser = DenoiserGraph(student)
    specs = tensor_specs(student, sensor, precision)

    def graph(module: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> TorchGraph:
        return TorchGraph(module, Signature({n: specs[n] for n in inputs}, {n: specs[n] for n in outputs}))

    condition, estimate = Condition._fields, denoiser_outputs(student.config)
    decoder = DecoderGraph(sensor.min_range_m, sensor.max_range_m)
    graphs = {
        "encoder": graph(encoder, encoder_inputs(student.config), condition),
        "denoiser": graph(denoiser, ("x", "t", *condition), estimate),
        "decoder": graph(decoder, ("code", "logit"), ("range_m", "probability")),
        "points": graph(
            PointsGraph(),
            ("range_m", "probability", "intensity", "rays", "limits"),
            ("range_map", "reflected", "cloud"),
        ),
    }
    if student.config.previous:
        carrying = CarryGraph(sensor.min_range_m, sensor.max_range_m)
        graphs["carry"] = graph(carrying, ("before", "motion", "rays"), ("previous",))
    if student.config.spread:
        for steps in SAMPLED_STEPS:
            graphs[f"sample{steps}"] = graph(
                SampleGraph(denoiser, steps), ("noise", *condition), estimate[:3]
            )
    if pixels:
        graphs["pixels"] = graph(PixelsGraph(dtype), ("images", "row_weights", "column_weights"), ("atlas",))
    return graphs


def tensor_specs(student: Student, sensor: Sensor, precision: str) -> dict[str, Spec]:
    """Type and shape of every tensor of a frame."""
    (rows, columns), c = sensor.shape, student.config
    half = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    patch_rows, patch_columns = rows // PATCH[0], columns // PATCH[1]
    f32: dict[str, tuple[int | str, ...]] = {
        "grid": (c.hypotheses, rows, columns, 2),
        "mask": (c.hypotheses, rows, columns),
        "rays": (c.ray_features, rows, columns),
        "row_weights": ("tile_height", "height"),
        "column_weights": ("tile_width", "width"),
        "x": (1, 2, rows, columns),
        "noise": (1, 4, rows, columns),
        "t": (1,),
        "limits": (3,),
        "before": (rows, columns),
        "motion": (4, 4),
        "previous": (2, rows, columns),
        **dict.fromkeys(("code", "logit", "intensity", "spread"), (1, rows, columns)),
        **dict.fromkeys(("range_m", "probability", "range_map", "reflected"), (rows, columns)),
        "cloud": (rows, columns, 4),
    }
    features: dict[str, tuple[int | str, ...]] = {
        "full": (1, c.full, rows, columns),
        "fine": (1, c.fine, rows // FINE[0], columns // FINE[1]),
        "patch": (1, c.patch, patch_rows, patch_columns),
        "mid": (1, c.mid, patch_rows // 2, patch_columns // 2),
        "coarse": (1, c.coarse, patch_rows // 4, patch_columns // 4),
    }
    return {
        "images": ("uint8", ("views", "height", "width", 3)),
        "atlas": ("uint8", ("atlas_height", "tile_width", 3)),
        **{name: ("float32", shape) for name, shape in f32.items()},
        **{name: (half, shape) for name, shape in features.items()},
    }
