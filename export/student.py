# SPDX-License-Identifier: Apache-2.0
"""A trained student -> the graphs of a bundle (ONNX), with the proof that nothing changed on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.device_graphs import export_device_graphs
from export.equality import compare
from export.graphs import Graph, proto, trace
from export.precision import to_half
from lidargen_ros.models.frame_graphs import SampleGraph
from lidargen_ros.models.student import Condition, Student
from lidargen_ros.models.student_graphs import (
    DecoderGraph,
    DenoiserGraph,
    EncoderGraph,
    denoiser_outputs,
    encoder_inputs,
)
from lidargen_ros.models.student_weights import HALF_WEIGHTS_ABOVE, folded
from lidargen_ros.sensors import Sensor

SAMPLED_STEPS = 4
SAMPLER = f"sample{SAMPLED_STEPS}"


def round_weights(module: nn.Module) -> None:
    """Rounds the weights that ``half_weights`` will store to what float16 holds, so that torch and graph are equal."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() >= HALF_WEIGHTS_ABOVE:
                parameter.copy_(parameter.half().float())


def half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stores large float32 weights as float16 followed by a cast, which runtimes fold when they load the graph.

    Arithmetic stays float32; the file halves.
    """
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < HALF_WEIGHTS_ABOVE:
            continue
        array = numpy_helper.to_array(weight)
        if np.abs(array).max() > 6e4:
            raise ValueError(f"weight {weight.name} overflows float16; export it in float32")
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def random_frame(student: Student, sensor: Sensor, tile: tuple[int, int], views: int) -> dict[str, Tensor]:
    """Random inputs of the size of real ones, by name: of the encoder, and the noisy sweep of the denoiser."""
    generator = torch.Generator().manual_seed(0)
    rows, columns, k = *sensor.shape, student.config.hypotheses
    return {
        "atlas": torch.randint(0, 256, (views * tile[0], tile[1], 3), dtype=torch.uint8, generator=generator),
        "grid": torch.rand(k, rows, columns, 2, generator=generator) * 2 - 1,
        "mask": (torch.rand(k, rows, columns, generator=generator) > 0.3).float(),
        "rays": torch.randn(student.config.ray_features, rows, columns, generator=generator),
        "previous": torch.randn(2, rows, columns, generator=generator).clamp(-1, 1),
        "x": torch.randn(1, 2, rows, columns, generator=generator),
        "t": torch.tensor([0.7]),
        "noise": torch.randn(1, 4, rows, columns, generator=generator),
    }


def student_graphs(student: Student, sensor: Sensor, frame: dict[str, Tensor]) -> list[Graph]:
    """The graphs of a folded student, with ``frame`` and what follows from it as their inputs: three, and ``sample4`` last for
    networks that say their spread.

    The rows of the atlas (the number of cameras) stay free; everything else is fixed, as engines like it.
    """
    encoder, denoiser = EncoderGraph(student), DenoiserGraph(student)
    decoder = DecoderGraph(sensor.min_range_m, sensor.max_range_m)
    first = {name: frame[name] for name in encoder_inputs(student.config)}
    with torch.no_grad():
        condition = encoder(*first.values())
        second = {"x": frame["x"], "t": frame["t"], **condition._asdict()}
        code, logit = denoiser(*second.values())[:2]
    outputs = denoiser_outputs(student.config)
    graphs = [
        Graph("encoder", encoder, first, Condition._fields, {"atlas": {0: "atlas_height"}}),
        Graph("denoiser", denoiser, second, outputs),
        Graph("decoder", decoder, {"code": code, "logit": logit}, ("range_m", "probability")),
    ]
    if student.config.spread:
        noise = {"noise": frame["noise"], **condition._asdict()}
        sampler = SampleGraph(denoiser, SAMPLED_STEPS)
        graphs.append(Graph(SAMPLER, sampler, noise, outputs[:3]))
    return graphs


def export_graphs(
    student: Student,
    folder: Path,
    sensor: Sensor,
    tile: tuple[int, int],
    *,
    views: int = 3,
    half: bool = True,
    precision: str = "fp32",
    real: dict[str, NDArray] | None = None,
) -> dict[str, dict[str, float]]:
    """Writes ``encoder.onnx``, ``denoiser.onnx``, ``decoder.onnx``, what ``export_device_graphs`` writes, and ``sample4.onnx``
    for networks that say their spread, in fp32: in half precision it would hold all weights of the denoiser once more.

    Args:
        half: store large weights as float16.
        precision: of the arithmetic between the first and the last matrix product (``export.precision``).
        real: inputs of a real frame, named as those of ``random_frame``; one-step estimate where x and t are not given.

    Returns:
        Relative L2 error of each graph in ONNX Runtime against torch in float32: ``{"encoder": {"random": 1e-7}}``. None for
        ``sample4``, whose network is that of ``denoiser``: the last bit of a logit may turn a return into none.
    """
    student = folded(student)
    if half:
        round_weights(student)
    frame = random_frame(student, sensor, tile, views)
    graphs = student_graphs(student, sensor, frame)
    samples = {"random": graphs}
    if real is not None:
        best = {name: torch.zeros_like(frame[name]) for name in ("previous", "x", "noise")} | {
            "t": torch.ones(1)
        }
        samples["real"] = student_graphs(
            student, sensor, best | {k: torch.from_numpy(v) for k, v in real.items()}
        )
    errors = {}
    for i, graph in enumerate(graphs):
        if graph.name == SAMPLER and precision != "fp32":
            continue
        model = proto(trace(graph))
        if precision != "fp32":
            model = to_half(model, precision, Condition._fields)
        elif half:
            model = half_weights(model)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / f"{graph.name}.onnx")
        if graph.name != SAMPLER:
            errors[graph.name] = {kind: compare(model, sample[i]) for kind, sample in samples.items()}
    return errors | export_device_graphs(folder, sensor.shape, tile, student.config.ray_features)
