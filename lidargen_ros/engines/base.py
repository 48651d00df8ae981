# SPDX-License-Identifier: Apache-2.0
"""The one small interface of everything that can run an exported graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Tensors = dict[str, Any]  # arrays of the engine's own kind: numpy on the host, torch tensors on a GPU


class Engine(Protocol):
    """Runs one graph. Outputs of one engine may be fed to another of the same class without copies."""

    name: str  # "onnxruntime-cpu", ...
    inputs: dict[str, tuple[str, tuple[int | str, ...]]]  # name -> (dtype, shape; a str is a free dimension)
    outputs: dict[str, tuple[str, tuple[int | str, ...]]]

    def run(self, feeds: Mapping[str, Any]) -> Tensors:
        """Feeds every input by name, returns every output by name.

        Raises:
            EngineError: an input is missing or has the wrong type or shape, or the runtime failed.
        """
        ...

    def close(self) -> None:
        """Frees memory; the engine cannot be used afterwards."""
        ...
