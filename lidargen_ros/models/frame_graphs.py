# SPDX-License-Identifier: Apache-2.0
"""A student as the graphs of one frame on a torch device: from the pixels of the cameras to points, nothing on the host.

Beside the three graphs of the network there are ``yuv422``, ``nv12`` and ``bayer`` (raw bytes to RGB), ``pixels`` (shrinks
the pictures into the atlas), ``carry`` (moves the sweep before to where the vehicle is now, for networks that read it),
``sample2`` ... (several steps without a word to the host) and ``points`` (thresholds, and the points themselves). All but
``carry`` and most of the ``sample`` ones are exported as well (``export.student``).
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
from .picture_graphs import BayerGraph, Nv12Graph, PixelsGraph, Yuv422Graph
from .student import FINE, PATCH, Condition, Student
from .student_graphs import DecoderGraph, DenoiserGraph, EncoderGraph, denoiser_outputs, encoder_inputs

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SAMPLED_STEPS = range(2, 9)


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
        "points": points_graph(sensor.shape, student.config.ray_features),
    }
    if student.config.previous:
        carrying = CarryGraph(sensor.min_range_m, sensor.max_range_m)
        graphs["carry"] = graph(carrying, ("before", "before_probability", "motion", "rays"), ("previous",))
    if student.config.spread:
        for steps in SAMPLED_STEPS:
            graphs[f"sample{steps}"] = graph(
                SampleGraph(denoiser, steps), ("noise", *condition), estimate[:3]
            )
    return graphs | picture_graphs(dtype) if pixels else graphs


def picture_graphs(
    dtype: torch.dtype = torch.float32, tile: tuple[int | str, int | str] = ("tile_height", "tile_width")
) -> dict[str, TorchGraph]:
    """From raw pictures to the atlas.

    Args:
        dtype: of the products that shrink pictures.
        tile: (height, width) of a view in the atlas; names leave it free.
    """
    images: Spec = ("uint8", ("views", "height", "width", 3))

    def raw(name: str, shape: tuple[int | str, ...], order: int) -> Signature:
        return Signature({name: ("uint8", shape), f"{name}_order": ("int64", (order,))}, {"images": images})

    pixels = Signature(
        {
            "images": ("uint8", ("views", "height", "width", "channels")),
            "images_order": ("int64", (3,)),
            "row_weights": ("float32", (tile[0], "height")),
            "column_weights": ("float32", (tile[1], "width")),
        },
        {"atlas": ("uint8", ("atlas_height", tile[1], 3))},
    )
    yuv422 = raw("yuv422", ("views", "height", "half_width", 4), 4)
    nv12 = raw("nv12", ("views", 3, "half_height", "half_width", 2), 2)
    bayer = raw("bayer", ("views", "half_height", 2, "half_width", 2), 4)
    return {
        "yuv422": TorchGraph(Yuv422Graph(), yuv422),
        "nv12": TorchGraph(Nv12Graph(), nv12),
        "bayer": TorchGraph(BayerGraph(), bayer),
        "pixels": TorchGraph(PixelsGraph(dtype), pixels),
    }


def points_graph(shape: tuple[int, int], ray_features: int) -> TorchGraph:
    """The last graph of a frame; ``shape``: (rows, columns)."""
    inputs: dict[str, Spec] = {
        **dict.fromkeys(("range_m", "probability"), ("float32", shape)),
        "intensity": ("float32", (1, *shape)),
        "rays": ("float32", (ray_features, *shape)),
        "limits": ("float32", (3,)),
    }
    outputs: dict[str, Spec] = {
        **dict.fromkeys(("range_map", "reflected"), ("float32", shape)),
        "cloud": ("float32", (*shape, 4)),
    }
    return TorchGraph(PointsGraph(), Signature(inputs, outputs))


def tensor_specs(student: Student, sensor: Sensor, precision: str) -> dict[str, Spec]:
    """Type and shape of every tensor that goes into or out of the network."""
    (rows, columns), c = sensor.shape, student.config
    half = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    patch_rows, patch_columns = rows // PATCH[0], columns // PATCH[1]
    f32: dict[str, tuple[int | str, ...]] = {
        "grid": (c.hypotheses, rows, columns, 2),
        "mask": (c.hypotheses, rows, columns),
        "rays": (c.ray_features, rows, columns),
        "x": (1, 2, rows, columns),
        "noise": (1, 4, rows, columns),
        "t": (1,),
        "before": (rows, columns),
        "before_probability": (rows, columns),
        "motion": (4, 4),
        "previous": (2, rows, columns),
        **dict.fromkeys(("code", "logit", "intensity", "spread"), (1, rows, columns)),
        **dict.fromkeys(("range_m", "probability"), (rows, columns)),
    }
    features: dict[str, tuple[int | str, ...]] = {
        "full": (1, c.full, rows, columns),
        "fine": (1, c.fine, rows // FINE[0], columns // FINE[1]),
        "patch": (1, c.patch, patch_rows, patch_columns),
        "mid": (1, c.mid, patch_rows // 2, patch_columns // 2),
        "coarse": (1, c.coarse, patch_rows // 4, patch_columns // 4),
    }
    return {
        "atlas": ("uint8", ("atlas_height", "tile_width", 3)),
        **{name: ("float32", shape) for name, shape in f32.items()},
        **{name: (half, shape) for name, shape in features.items()},
    }
