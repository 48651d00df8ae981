# SPDX-License-Identifier: Apache-2.0
"""Read the weights of the published diffusion model, every key accounted for, and convert them to safetensors.

    model.pt                                 published: a flat dict of tensors, or one nested under "model"
    iter_N_reg_model.pt, iter_N_ema_model.pt written by training, beside iter_N.pt and latest_checkpoint.txt
    model.safetensors                        written by ``convert_checkpoint``

Sizes are read from the shapes, so any member of the family loads. Weights go tensor by tensor from the mapped
file into memory that is already on the device: no second copy of the model ever exists.
"""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import LISTED, CheckpointError, ConfigError, listed
from ..files import replacing
from .dit_config import DiTConfig
from .dit_denoiser import DiffusionModel
from .latents import first_line

Kind = Literal["ema", "reg"]

POSITION_KEY = "net.pos_embedder.seq"  # 0, 1, 2, ...: carries no information
EXTRA_STATE = "_extra_state"  # entries of an attention library, not tensors


@dataclass(frozen=True)
class Weights:
    """An open weights file: shapes at once, tensors when asked for (CPU, memory-mapped where possible)."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    get: Callable[[str], Tensor]


@contextlib.contextmanager
def open_weights(path: str | Path) -> Iterator[Weights]:
    """Open ``.safetensors`` or a ``torch.save`` file; pickles are read with ``weights_only``.

    Raises:
        CheckpointError: absent, damaged, or not a dict of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; get it with `lidargen download`")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                shapes = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
                yield Weights(path, shapes, file.get_tensor)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path}: damaged safetensors file ({first_line(error)}); get it again"
            ) from error
        return
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint of plain tensors ({first_line(error)}); it is truncated or "
            "another kind of file, get it again"
        ) from error
    tensors = _tensors(content, path)
    yield Weights(path, {k: tuple(v.shape) for k, v in tensors.items()}, tensors.__getitem__)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The flat dict of tensors, bare or under "model" (an "ema" beside it is not used)."""
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    tensors = {k: v for k, v in content.items() if EXTRA_STATE not in str(k)}
    other = [str(k) for k, v in tensors.items() if not isinstance(v, Tensor)]
    if other or not tensors:
        found = f"entries that are no tensors ({', '.join(other[:LISTED])})" if other else "nothing"
        raise CheckpointError(
            f"{path}: holds {found}; weights of a training run lie beside it in *_ema_model.pt, *_reg_model.pt"
        )
    return tensors


def find_checkpoint(path: str | Path, kind: Kind = "ema") -> Path:
    """The weights file that ``path`` means.

    A folder means its ``model.safetensors``, ``model.pt`` or the newest training checkpoint; ``NAME.pt`` of a
    training run means ``NAME_ema_model.pt`` (averaged weights) or ``NAME_reg_model.pt`` beside it, by ``kind``.

    Raises:
        CheckpointError: nothing is there.
    """
    path = Path(path)
    if path.is_dir():
        latest = path / "latest_checkpoint.txt"
        names = ["model.safetensors", "model.pt"]
        if latest.is_file():
            names.insert(0, latest.read_text().strip())
        for name in names:
            if name and (found := _variant(path / name, kind)):
                return found
        raise CheckpointError(
            f"{path}: holds no model.safetensors, model.pt or latest_checkpoint.txt; get the model with "
            "`lidargen download`"
        )
    found = _variant(path, kind)
    if found is None:
        raise CheckpointError(f"{path}: no such checkpoint; get it with `lidargen download`")
    return found


def _variant(path: Path, kind: Kind) -> Path | None:
    for candidate in (path.with_name(f"{path.stem}_{kind}_model.pt"), path):
        if candidate.is_file():
            return candidate
    return None


def load_diffusion(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    rounded_positions: bool | None = None,
    kind: Kind = "ema",
) -> DiffusionModel:
    """The diffusion model of a checkpoint, ready for inference on ``device``.

    Args:
        dtype: type of the weights; None keeps the file's.
        rounded_positions: bfloat16-rounded position tables; None means yes for the width of the published
            model's weights in bfloat16 (what they were trained with), no otherwise.

    Raises:
        CheckpointError: a missing, unexpected or misshapen key (all are listed), or a damaged file.
        ConfigError: not enough memory on the device; says how much is needed.
    """
    with open_weights(find_checkpoint(path, kind)) as weights:
        config = config_of(weights)
        if dtype is None:
            dtype = weights.get("net.x_embedder.proj.1.weight").dtype
        rounded = dtype is torch.bfloat16 if rounded_positions is None else rounded_positions
        with torch.device("meta"):
            model = DiffusionModel(config, rounded)
        check_keys(weights, model)
        model = model.to(dtype)
        device = device_named(device)
        require_memory(device, module_bytes(model), f"the weights of {weights.path.name}")
        model = model.to_empty(device=device).eval().requires_grad_(False)
        _fill(model, weights)
    return model


def config_of(weights: Weights) -> DiTConfig:
    """Sizes of the network that the weights are of; ``CheckpointError`` if they are of another kind."""
    try:
        return DiTConfig.from_shapes(weights.shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{weights.path}: {error}; is it the right file?") from error


def check_keys(weights: Weights, model: DiffusionModel) -> None:
    """All keys of the file are known, all of the network are there, all shapes fit; else ``CheckpointError``.

    Optional are the position vector and the log-variance head, which sampling does not use.
    """
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    required = {k for k in expected if k.startswith("net.") and k != POSITION_KEY}
    problems = {
        "missing": sorted(required - weights.shapes.keys()),
        "unexpected": sorted(weights.shapes.keys() - expected.keys()),
        "of wrong shape": [
            f"{k} is {weights.shapes[k]} instead of {shape}"
            for k, shape in sorted(expected.items())
            if k in weights.shapes and weights.shapes[k] != shape
        ],
    }
    found = [f"{len(keys)} {what}: {listed(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(
            f"{weights.path}: does not fit the diffusion model ({'; '.join(found)}); is it the right file?"
        )


@torch.no_grad()
def _fill(model: DiffusionModel, weights: Weights) -> None:
    for key, target in model.state_dict().items():
        if key in weights.shapes:
            target.copy_(weights.get(key))
        elif key == POSITION_KEY:
            target.copy_(torch.arange(target.numel()))
        else:
            target.zero_()  # a log-variance of 0 for a file without that head


def convert_checkpoint(
    source: str | Path, target: str | Path, dtype: torch.dtype | None = None, kind: Kind = "ema"
) -> Path:
    """Write a checkpoint as one safetensors file (in folder ``target`` if that is one); returns its path.

    Keys are checked first. The file appears complete or not at all.
    """
    target = Path(target)
    if target.is_dir():
        target = target / "model.safetensors"
    with open_weights(find_checkpoint(source, kind)) as weights:
        with torch.device("meta"):
            model = DiffusionModel(config_of(weights))
        check_keys(weights, model)
        tensors = {key: weights.get(key).to(dtype).contiguous() for key in weights.shapes}
        write_tensors(tensors, target, {})
    return target


def write_tensors(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
    """One safetensors file, whole or not at all; ``CheckpointError`` if it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with replacing(target) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"} | metadata)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{target} cannot be written ({first_line(error)}); free some space or choose another place"
        ) from error


def module_bytes(model: torch.nn.Module) -> int:
    """Bytes of all weights and buffers."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def device_named(device: torch.device | str) -> torch.device:
    """``ConfigError`` for a name that torch does not know."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device}: unknown; use cuda, cuda:0, cuda:1, ... or cpu") from error


def require_memory(device: torch.device, needed: int, what: str) -> None:
    """``ConfigError`` if a GPU is asked for and absent, or has less than ``needed`` bytes free."""
    gigabytes = needed / 1e9
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device {device}: no CUDA GPU found, and {what} need {gigabytes:.1f} GB of GPU memory; "
            "use --device cpu for small models"
        )
    if (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(f"device {device}: there are {count} GPUs here, cuda:0 to cuda:{count - 1}")
    free, total = torch.cuda.mem_get_info(device)
    if free < needed:
        raise ConfigError(
            f"device {device}: {what} need {gigabytes:.1f} GB of GPU memory, {free / 1e9:.1f} of "
            f"{total / 1e9:.1f} GB are free; close other programs or use a larger GPU"
        )
