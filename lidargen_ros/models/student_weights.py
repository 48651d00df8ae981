# SPDX-License-Identifier: Apache-2.0
"""The weights of a student as a bundle keeps them: normalisation folded into the convolutions, large weights in float16."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import BundleError
from .student import Student, StudentConfig

HALF_WEIGHTS_ABOVE = 1024  # elements; small tensors (biases, norms, the last layer) stay float32


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Folds every convolution-normalisation pair of ``nn.Sequential`` containers into the convolution, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            layers = list(child)
            for i, (first, second) in enumerate(pairwise(list(child))):
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    layers[i], layers[i + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
            layers = [layer for layer in layers if not isinstance(layer, nn.Identity)]
            setattr(module, name, nn.Sequential(*layers))
            child = getattr(module, name)
        fold_batch_norm(child)
    return module


def folded(student: Student) -> Student:
    """A float32 copy ready to run, normalisation folded."""
    return fold_batch_norm(copy.deepcopy(student).cpu().float().eval())  # type: ignore[return-value]


def write_student(student: Student, path: Path) -> None:
    """Writes a folded student with its configuration."""
    weights = {
        name: (weight.half() if weight.numel() >= HALF_WEIGHTS_ABOVE else weight).contiguous()
        for name, weight in student.state_dict().items()
    }
    save_file(weights, path, {"config": json.dumps(student.config.to_dict())})


def read_student(path: Path) -> Student:
    """A folded student in float32, as :func:`write_student` left it.

    Raises:
        BundleError: the file is cut, or is not of a student.
    """
    try:
        with safe_open(path, "pt") as file:
            config = StudentConfig.from_dict(json.loads((file.metadata() or {})["config"]))
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        with torch.device("meta"):
            student = Student(config)
        student = folded(student.to_empty(device="cpu"))
        student.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{path} holds no student: {reason}; export the bundle again") from error
    return student
