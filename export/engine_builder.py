# SPDX-License-Identifier: Apache-2.0
"""One graph -> one engine, with TensorRT or TensorRT-RTX."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from lidargen_ros.engines.trt_api import TensorRT
from lidargen_ros.errors import EngineError

Range = tuple[int, int, int]  # smallest, usual, largest


@dataclass(frozen=True)
class Target:
    """What to build for.

    Attributes:
        api: the runtime.
        gpu: compute capability, ``sm_87``.
        free: sizes of the free dimensions of graphs, by name.
        timing_cache: kept between builds of one GPU, so that the next one is quick; TensorRT only.
    """

    api: TensorRT
    gpu: str
    free: Mapping[str, Range] = field(default_factory=dict)
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Built:
    """An engine not yet written. ``bindings``: tensor -> [input or output, dtype, shape]; ``layers``: as the builder got them."""

    plan: memoryview
    bindings: dict[str, list[Any]]
    layers: list[dict[str, Any]]


def build(path: Path, target: Target, progress: Progress) -> Built:
    """Builds the engine of a graph.

    Args:
        path: the ``.onnx`` file; external weights lie beside it.
        progress: shows the phases of the builder; Ctrl-C stops between two steps.

    Raises:
        EngineError: the graph cannot be read, holds an operator that the runtime does not know (it is named), or
            cannot be compiled for the GPU.
        KeyboardInterrupt: stopped.
    """
    api, trt = target.api, target.api.module
    builder = trt.Builder(api.logger)
    network = builder.create_network(strongly_typed(trt))
    parser = trt.OnnxParser(network, api.logger)
    api.logger.messages.clear()
    config = builder.create_builder_config()
    # The runtime records a whole frame as one CUDA graph on one stream; side streams would only cost memory.
    config.max_aux_streams = 0
    # float32 means float32: TF32 would cost 1e-3, and whoever wants its speed gets more of it from fp16.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if api.targets:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.gpu.replace("sm_", "SM")), 0)
    elif target.timing_cache is not None:
        known = target.timing_cache.read_bytes() if target.timing_cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    with shown(trt, config, progress, path.stem) as monitor:
        if not parser.parse_from_file(str(path)):
            raise EngineError(f"{path} cannot be built with {api.name} {api.version}: {parser_error(parser)}")
        add_profile(builder, network, config, target, path)
        plan = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    if plan is None:
        raise EngineError(
            f"{path} cannot be built for {target.gpu} with {api.name} {api.version}: {api.errors()}; "
            "try another --precision or runtime"
        )
    if not api.targets and target.timing_cache is not None:
        target.timing_cache.write_bytes(config.get_timing_cache().serialize())
    return Built(memoryview(plan), bindings(api, network), layers(api, network))


def strongly_typed(trt: Any) -> int:
    """Flags of a network that computes in the types of its graph; newer versions know nothing else and have no flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def parser_error(parser: Any) -> str:
    """The first complaint of the parser about the graph itself: the operator by name, the reason, the remedy."""
    error = parser.get_error(0)
    reason = " ".join(error.desc().split())[:300]
    if not error.node_operator():
        return f"{reason}; the file is truncated, or its external weights are missing: copy or export the bundle again"
    return f"operator {error.node_operator()} ({error.node_name()}): {reason}; export the graph without it"


def add_profile(builder: Any, network: Any, config: Any, target: Target, path: Path) -> None:
    """Sizes of free dimensions; nothing for graphs without any."""
    profile, used = builder.create_optimization_profile(), False
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        names = {axis: tensor.get_dimension_name(axis) for axis, size in enumerate(shape) if size == -1}
        if unknown := sorted(set(names.values()) - set(target.free)):
            raise EngineError(
                f"{path}: input {tensor.name} has the free dimension {', '.join(unknown)}, whose sizes are not known; "
                "export the graph with a fixed one"
            )
        sizes = (
            tuple(target.free[names[axis]][i] if axis in names else size for axis, size in enumerate(shape))
            for i in range(3)
        )
        profile.set_shape(tensor.name, *sizes)
        used = True
    if used:
        config.add_optimization_profile(profile)


def bindings(api: TensorRT, network: Any) -> dict[str, list[Any]]:
    """Inputs and outputs of a network; -1 is a free dimension."""
    inputs = {t.name: ("input", t) for t in (network.get_input(i) for i in range(network.num_inputs))}
    outputs = {t.name: ("output", t) for t in (network.get_output(i) for i in range(network.num_outputs))}
    return {name: [kind, api.dtype(t.dtype), list(t.shape)] for name, (kind, t) in (inputs | outputs).items()}


def layers(api: TensorRT, network: Any) -> list[dict[str, Any]]:
    """Name, type, and type and shape of the results of every layer, before the builder fuses them."""
    rows = []
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        results = [layer.get_output(i) for i in range(layer.num_outputs)]
        rows.append(
            {
                "name": layer.name,
                "type": layer.type.name,
                "outputs": [[api.dtype(t.dtype), list(t.shape)] for t in results],
            }
        )
    return rows


@contextmanager
def shown(trt: Any, config: Any, progress: Progress, title: str) -> Iterator[Any]:
    """The builder's phases as nested bars; the value is the monitor, whose ``stopped`` is True after Ctrl-C.

    Ctrl-C is noted instead of raised meanwhile: native code swallows what a callback raises, and goes on building.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tasks: dict[str, Any] = {}
            self.stopped = False

        def stop(self, *_: object) -> None:
            self.stopped = True

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            text = f"  {phase}" if parent else f"{title}: {phase}"
            self.tasks[phase] = progress.add_task(text, total=steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress.update(self.tasks[phase], completed=step + 1)
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            progress.remove_task(self.tasks.pop(phase))

    monitor = Monitor()
    config.progress_monitor = monitor
    before = signal.signal(signal.SIGINT, monitor.stop)
    try:
        yield monitor
    finally:
        signal.signal(signal.SIGINT, before)
    for task in monitor.tasks.values():
        progress.remove_task(task)
