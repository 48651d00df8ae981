# SPDX-License-Identifier: Apache-2.0
"""Weights of a student in pieces small enough to carry, and back."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lidargen_ros.errors import CheckpointError
from lidargen_ros.models.student import Student, StudentConfig

PIECE_BYTES = 15_000_000
PATTERN = "student-*.safetensors"


def write_pieces(model: nn.Module, config: StudentConfig, folder: Path, *, half: bool = False) -> list[Path]:
    """``student-0.safetensors`` ... with the configuration in each; all weights in float32.

    Args:
        half: matrices and kernels in float16; biases, norms and their statistics stay as they are.
    """
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in model.state_dict().items():
        if half and value.ndim > 1:
            value = value.half()
        nbytes = value.numel() * value.element_size()
        if groups[-1] and size + nbytes > PIECE_BYTES:
            groups.append({})
            size = 0
        groups[-1][key] = value.contiguous()
        size += nbytes
    paths = []
    for i, group in enumerate(groups):
        paths.append(folder / f"student-{i}.safetensors")
        save_file(group, paths[-1], {"config": json.dumps(config.to_dict())})
    return paths


def read_pieces(folder: Path) -> tuple[dict[str, Tensor], StudentConfig]:
    """Weights and configuration from one file, or from a folder of pieces or with one ``student.safetensors``.

    Those of a bundle are folded (``unfold``).

    Raises:
        CheckpointError: there are none.
    """
    paths = sorted(folder.glob(PATTERN)) or sorted(folder.glob("student.safetensors"))
    if folder.is_file():
        paths = [folder]
    if not paths:
        raise CheckpointError(
            f"{folder} holds no student weights ({PATTERN}); give the folder of a training run"
        )
    weights: dict[str, Tensor] = {}
    for path in paths:
        weights |= {key: v.float() if v.is_floating_point() else v for key, v in load_file(path).items()}
    with safe_open(paths[0], "pt") as file:
        config = StudentConfig.from_dict(json.loads(file.metadata()["config"]))
    return weights, config


def load_student(folder: Path) -> Student:
    """The student of a run, ready to evaluate; every key accounted for."""
    weights, config = read_pieces(folder)
    student = Student(config)
    student.load_state_dict(weights)
    return student.eval()
