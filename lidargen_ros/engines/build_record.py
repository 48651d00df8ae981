# SPDX-License-Identifier: Apache-2.0
"""Where built engines lie, and the record that says what they were built from.

    BUNDLE/engines/<gpu>-<runtime><version>-<precision>/build.json, encoder.engine, ...
    <cache>/engines/<bundle>-<digest>/<gpu>-<runtime><version>-<precision>/    where the bundle cannot be written

``build.json`` is written last: a folder without one is not finished, whatever lies in it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import EngineError

RECORD = "build.json"
FORMAT = 1


@dataclass(frozen=True)
class BuildRecord:
    """What ``build.json`` says of the engines beside it."""

    runtime: str  # "tensorrt" or "tensorrt-rtx"
    version: str
    gpu: str  # compute capability built for: "sm_87"
    gpu_name: str  # of the GPU that timed the kernels; "" where none took part
    precision: str  # of the arithmetic: fp32, fp16, bf16
    graphs: dict[str, str]  # encoder.onnx -> sha256 of the graph in the bundle, external weights included
    engines: dict[str, str]  # encoder.engine -> sha256
    bindings: dict[str, dict[str, list[Any]]]  # encoder.engine -> tensor -> [input or output, dtype, shape]
    options: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def folder(self) -> str:
        return folder_name(self.gpu, self.runtime, self.version, self.precision)

    def write(self, folder: Path) -> None:
        """Writes ``build.json`` in one step."""
        temporary = folder / f".{RECORD}.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")
        temporary.replace(folder / RECORD)


def folder_name(gpu: str, runtime: str, version: str, precision: str) -> str:
    return f"{gpu}-{runtime}{version}-{precision}"


def cache_folder(bundle: str, digest: str) -> Path:
    """Where engines of a bundle that cannot be written go: below ``LIDARGEN_CACHE``, else below ``~/.cache/lidargen_ros``."""
    root = Path(os.environ.get("LIDARGEN_CACHE") or Path.home() / ".cache" / "lidargen_ros")
    return root / "engines" / f"{bundle}-{digest[:12]}"


def read_record(folder: Path) -> BuildRecord:
    """The record of a folder of engines.

    Raises:
        EngineError: there is none, or it cannot be read.
    """
    try:
        values = json.loads((folder / RECORD).read_text())
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
        return BuildRecord(**values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EngineError(
            f"{folder / RECORD} cannot be read: {error}; build again: python export/build_engine.py BUNDLE"
        ) from error


def build_folders(bundle: Path, name: str, digest: str) -> list[Path]:
    """Folders of finished builds of a bundle: those beside it, then those in the cache."""
    roots = (bundle / "engines", cache_folder(name, digest))
    return [record.parent for root in roots for record in sorted(root.glob(f"*/{RECORD}"))]
