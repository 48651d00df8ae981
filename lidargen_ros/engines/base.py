# SPDX-License-Identifier: Apache-2.0
"""The one small interface of everything that can run the exported graphs of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError

Written = NDArray | Sequence[NDArray]  # a sequence is stacked on a new first axis
Spec = tuple[str, tuple[int | str, ...]]  # dtype as numpy names it, shape; a str is a free dimension


@dataclass(frozen=True)
class Signature:
    """What goes into a graph and what comes out, by name."""

    inputs: dict[str, Spec]
    outputs: dict[str, Spec]


class Engine(Protocol):
    """Runs the graphs of one bundle over one set of named tensors.

    The tensors live where the engine computes: an output of one graph is the input of the same name of the next, and
    what was written stays until it is written again. A frame is one ``write``, one ``run`` of several graphs, one
    ``read``; only ``read`` waits. Not for two threads at once.
    """

    name: str  # "onnxruntime-cpu", ...
    precision: str  # of the arithmetic: "fp32", "fp16", "bf16"
    graphs: dict[str, Signature]

    def write(self, tensors: Mapping[str, Written]) -> None:
        """Sets inputs of graphs; the arrays may be changed afterwards.

        Raises:
            EngineError: no graph has such an input, or its type or shape is another.
        """
        ...

    def run(self, graphs: Sequence[str], wanted: Sequence[str]) -> None:
        """Runs graphs in order. Of their outputs only ``wanted`` need to exist afterwards.

        Raises:
            EngineError: an input was never set, or the runtime failed.
        """
        ...

    def read(self, names: Sequence[str]) -> dict[str, NDArray]:
        """Tensors on the host; the arrays belong to the caller.

        Raises:
            EngineError: no such tensor was computed, or the runtime failed.
        """
        ...

    def wait(self) -> None:
        """Until all that was begun has ended; ``read`` does this by itself."""
        ...

    def close(self) -> None:
        """Frees memory; the engine cannot be used afterwards."""
        ...


def check_input(engine: str, graphs: Mapping[str, Signature], key: str, value: Written) -> None:
    """Raises EngineError where no graph takes ``value`` under the name ``key``."""
    array, given = (
        (value, value.shape) if isinstance(value, np.ndarray) else (value[0], (len(value), *value[0].shape))
    )
    for signature in graphs.values():
        if key not in signature.inputs:
            continue
        dtype, shape = signature.inputs[key]
        fits = len(given) == len(shape) and all(
            not isinstance(want, int) or want == got for want, got in zip(shape, given, strict=True)
        )
        if not fits or array.dtype.name != dtype:
            raise EngineError(
                f"{engine}: input {key} is {array.dtype} {given}, the graph takes {dtype} {shape}"
            )
        return
    known = sorted({name for signature in graphs.values() for name in signature.inputs})
    raise EngineError(f"{engine}: no graph has an input {key}; there are {', '.join(known)}")


def chain_inputs(graphs: Mapping[str, Signature], order: Sequence[str]) -> tuple[str, ...]:
    """Inputs that no earlier graph of the chain computes, each once."""
    needed: dict[str, None] = {}
    computed: set[str] = set()
    for graph in order:
        needed.update((name, None) for name in graphs[graph].inputs if name not in computed)
        computed.update(graphs[graph].outputs)
    return tuple(needed)


def check_present(engine: str, needed: Iterable[str], present: Iterable[str]) -> None:
    """Raises EngineError where a tensor was neither written nor computed."""
    if missing := sorted(set(needed) - set(present)):
        raise EngineError(f"{engine}: {', '.join(missing)} was never written; write it before the run")


def one_line(error: Exception) -> str:
    """The message of a runtime's own error, short enough for one line."""
    return " ".join(str(error).split())[:300]
