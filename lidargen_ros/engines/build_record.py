# SPDX-License-Identifier: Apache-2.0
"""Where built engines lie, and the record that says what they were built from.

    BUNDLE/engines/<gpu>-<runtime><version>-<precision>/build.json, encoder.engine, ...
    <cache>/engines/<bundle>-<digest>/<gpu>-<runtime><version>-<precision>/    where the bundle cannot be written

``build.json`` is written last: a folder without one is not finished, whatever lies in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..bundle import file_sha256
from ..errors import EngineError
from ..files import replacing

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
    graphs: dict[
        str, str
    ]  # encoder.onnx and files of external weights -> sha256, as the bundle's manifest has them
    engines: dict[str, str]  # encoder.engine -> sha256
    bindings: dict[str, dict[str, list[Any]]]  # encoder.engine -> tensor -> [input or output, dtype, shape]
    options: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def folder(self) -> str:
        return folder_name(self.gpu, self.runtime, self.version, self.precision)

    def mismatch(self, files: Mapping[str, str], version: str, gpu: str) -> str:
        """Why these engines are not for that bundle and machine; "" where they are.

        Args:
            files: ``files`` of the bundle's manifest.
            version: of the runtime that is installed.
            gpu: compute capability of the GPU here.
        """
        if self.gpu != gpu:
            return f"built for a GPU {self.gpu}, here is {gpu}"
        if self.version != version:
            return f"built with {self.runtime} {self.version}, here is {version}"
        if self.graphs != graph_files(files):
            return "built from other graphs than those in the bundle"
        return ""

    def damage(self, folder: Path) -> str:
        """The first engine that is missing or not the one that was built; "" where all are whole."""
        for name, expected in self.engines.items():
            path = folder / name
            if not path.is_file() or file_sha256(path) != expected:
                return f"{path} is {'altered' if path.is_file() else 'missing'}"
        return ""

    def write(self, folder: Path) -> None:
        """Writes ``build.json`` in one step."""
        with replacing(folder / RECORD) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n")


def graph_files(files: Mapping[str, str]) -> dict[str, str]:
    """Graphs and their external weights among the files of a manifest."""
    return {
        name: digest for name, digest in files.items() if ".onnx" in name or name.endswith(".safetensors")
    }


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
