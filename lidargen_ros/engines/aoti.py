# SPDX-License-Identifier: Apache-2.0
"""AOTInductor packages: what ``torch.compile`` would make at every start, made once and kept."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import __version__
from ..errors import EngineError
from .base import one_line

log = logging.getLogger(__name__)


class Plain(nn.Module):
    """Gives a plain tuple: packages know no named ones."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        results = self.module(*inputs)
        return tuple(results) if isinstance(results, tuple) else (results,)


def load_or_build(
    module: nn.Module, inputs: tuple[Tensor, ...], folder: Path, name: str
) -> Callable[..., tuple[Tensor, ...]]:
    """The compiled module for inputs like these, from ``folder`` or compiled into it (seconds to a minute).

    Raises:
        EngineError: it cannot be compiled, or the folder cannot be written.
    """
    package = folder / f"{name}-{identity(module, inputs)}.pt2"
    if not package.exists():
        temporary = folder / f".{os.getpid()}.pt2"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            log.info("compiling %s (once)", package)
            program = torch.export.export(Plain(module), inputs)
            torch._inductor.aoti_compile_and_package(program, package_path=str(temporary))
            temporary.replace(package)
        except OSError as error:
            raise EngineError(
                f"{folder} cannot be written: {error}; set LIDARGEN_CACHE to a folder that can"
            ) from error
        except RuntimeError as error:
            raise EngineError(
                f"torch-aoti cannot compile: {one_line(error)}; use engine torch, which compiles nothing"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
    # Its locks between threads would break the recording of a CUDA graph; an engine is used by one thread at a time.
    runner = torch._inductor.aoti_load_package(str(package), run_single_threaded=True)
    return lambda *tensors: tuple(runner(*tensors))


def identity(module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Names a package by all that it was made from: weights, structure, shapes, device, versions."""
    digest = hashlib.sha256(f"{__version__} {torch.__version__} {module}".encode())
    for tensor in inputs:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()} {tensor.device.type}".encode())
    if torch.cuda.is_available():
        digest.update(repr(torch.cuda.get_device_capability()).encode())
    for name, weight in module.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
