# SPDX-License-Identifier: Apache-2.0
"""Tensors that are slow to make and the same every time, kept on disk where a folder is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lidargen_ros.errors import DataError
from lidargen_ros.files import replacing
from lidargen_ros.models.latents import first_line


class TensorCache:
    """``cache(name, make)``: the tensors of ``folder/name.safetensors``, made and written first if absent.

    Without a folder they are made each time. Several processes may share a folder: files appear whole.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def __call__(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.safetensors"
        if path.is_file():
            try:
                return load_file(path)
            except SafetensorError as error:
                raise DataError(
                    f"{path}: damaged ({first_line(error)}); remove it, it is made again"
                ) from error
        made = {key: value.contiguous() for key, value in make().items()}
        with replacing(path) as temporary:
            save_file(made, temporary)
        return made
