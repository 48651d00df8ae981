# SPDX-License-Identifier: Apache-2.0
"""Read the weights of a TorchScript archive without running any of its code.

The archive is a zip of a pickled module tree (``data.pkl``), one file per tensor storage (``data/N``) and the code.
Only the first two are read. The unpickler knows tensors, containers and "a module", nothing else, so that a file can
at worst be refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .latents import first_line

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# What a pickle and a zip can raise when their bytes are not what they were.
DAMAGE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    StopIteration,
    LookupError,
    RuntimeError,
    AttributeError,
    TypeError,
    ValueError,
)


class UnreadableScript(CheckpointError):
    """The archive is whole, but its weights cannot be had without running its code."""


class _Module:
    """Any object of the archive's own classes: a module, whose attributes are parameters, buffers and children."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch.jit._pickle", "build_doublelist"): list,
            ("torch.jit._pickle", "build_boollist"): list,
            ("torch.jit._pickle", "build_tensorlist"): list,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, tag: value,
        }
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if (module, name) not in known:
            raise UnreadableScript(f"it refers to {module}.{name}, which is not a weight")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.root}/data/{key}"))
            if len(content) < count * dtype.itemsize:
                raise pickle.UnpicklingError(
                    f"storage {key} is {len(content)} bytes, too few for {count} numbers"
                )
            self.storages[key] = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        return self.storages[key]


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    return storage.as_strided(size, stride, offset)


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive (by its content: a zip with code)."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except DAMAGE as error:
        raise CheckpointError(f"{path}: damaged zip file ({first_line(error)}); download it again") from error


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """State dict of the archive, names and values as ``torch.jit.load(path).state_dict()`` gives them.

    Raises ``UnreadableScript`` if the archive holds more than plain modules, ``CheckpointError`` if it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).rsplit("/", 1)[0]
            state = dict(_weights(_Unpickler(archive, root).load(), ""))
    except UnreadableScript as error:
        raise UnreadableScript(f"{path}: {error}") from error
    except DAMAGE as error:
        raise CheckpointError(
            f"{path}: damaged TorchScript file ({first_line(error)}); download it again"
        ) from error
    if not state:
        raise UnreadableScript(f"{path}: its modules hold no weights, they are frozen into its code")
    return state


def _weights(node: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in getattr(node, "attributes", {}).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _weights(value, f"{prefix}{name}.")
