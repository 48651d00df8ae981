# SPDX-License-Identifier: Apache-2.0
"""Load a tokenizer from any file it is published or trained in, and convert it once to safetensors.

    FOLDER/encoder.jit, decoder.jit, mean_std.pt   published; also with .safetensors for the state dicts alone
    iter_N_enc.jit + iter_N_dec.jit, iter_N_ema.jit, iter_N_reg.jit   written by post-training
    iter_N.pt, autoencoder.pt                      training checkpoints, with or without "model" and "network."
    tokenizer.safetensors                          written by ``convert_tokenizer``, statistics and layout inside

Files are told apart by content, networks by their weights. TorchScript archives are read, not run; one that cannot be
read without running its code is refused unless the caller trusts it.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..bundle import file_sha256
from ..errors import LISTED, CheckpointError, listed
from .checkpoints import write_tensors
from .haar import Patcher
from .latents import LatentStats, first_line, read_mean_std
from .tokenizer_codec import Tokenizer, build_network
from .tokenizer_config import TokenizerConfig, infer_config
from .tokenizer_jit import UnreadableScript, is_torchscript, read_torchscript
from .tokenizer_network import TokenizerNetwork
from .tokenizer_script import run_scripts

log = logging.getLogger(__name__)

CONVERTED = "tokenizer.safetensors"
METADATA_KEY = "lidargen_tokenizer"
# TorchScript files that may run their code unasked. Empty: every known published file can be read without that.
PUBLISHED_SHA256: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TokenizerFiles:
    """Where a tokenizer's weights and statistics lie."""

    weights: tuple[Path, ...]
    mean_std: Path | None


def load_tokenizer(
    path: str | Path,
    *,
    mean_std: str | Path | None = None,
    num_groups: int | None = None,
    ema: bool = False,
    reference: bool = False,
    trust: bool = False,
    published: Collection[str] = PUBLISHED_SHA256,
) -> Tokenizer:
    """Tokenizer of a folder or file, on the CPU, in eval mode, in the dtype of its weights, without gradients.

    ``mean_std``: file with the latent statistics, by default ``mean_std.pt`` beside the weights if there is one.
    ``num_groups``: groups of the image family's norms if not 32; weights do not tell. ``ema``: take the averaged
    weights of a training checkpoint. ``reference``: see ``build_network``. ``trust``: let a TorchScript file that
    cannot be read otherwise run its code; files whose sha256 is in ``published`` may do so unasked.

    Raises ``CheckpointError``: absent, damaged or incomplete files, missing or unexpected keys, wrong statistics.
    """
    files = find_files(path)
    try:
        tokenizer = _load_weights(files, num_groups, ema, reference)
    except UnreadableScript as error:
        allow_running(files.weights, str(error), trust, published)
        tokenizer = Tokenizer(run_scripts(files.weights))
    stats_file = Path(mean_std) if mean_std else files.mean_std
    if stats_file is not None and (mean_std or tokenizer.stats is None):
        config = tokenizer.config
        stats = read_mean_std(stats_file, config.latent_channels, per_frame=config.kind == "video")
        tokenizer = Tokenizer(tokenizer.network, stats)
    return tokenizer.eval().requires_grad_(False)


def convert_tokenizer(source: str | Path, target: str | Path, **options: Any) -> Path:
    """Write a tokenizer as one safetensors file (in folder ``target`` if that is one) and return its path.

    ``options`` are those of ``load_tokenizer``. The file appears complete or not at all.
    """
    target = Path(target)
    tokenizer = load_tokenizer(source, **options)
    if not isinstance(tokenizer.network, TokenizerNetwork):
        raise CheckpointError(
            f"{source}: runs as TorchScript only, its layout is unknown and cannot be converted"
        )
    return save_tokenizer(tokenizer, target / CONVERTED if target.is_dir() else target)


def save_tokenizer(tokenizer: Tokenizer, target: Path) -> Path:
    """Write weights, statistics and layout of a tokenizer as one safetensors file, whole or not at all."""
    weights = {name: value.contiguous() for name, value in tokenizer.network.state_dict().items()}
    if tokenizer.stats is not None:
        weights |= {"latent.mean": tokenizer.stats.mean, "latent.std": tokenizer.stats.std}
    write_tensors(weights, target, {METADATA_KEY: json.dumps(tokenizer.config.to_dict())})
    return target


def find_files(path: str | Path) -> TokenizerFiles:
    """Weights and statistics that belong to ``path``, a folder or one of its files."""
    path = Path(path)
    if path.is_file():
        weights = _with_partner(path)
    elif path.is_dir():
        weights = _in_folder(path)
    else:
        raise CheckpointError(
            f"{path}: no such tokenizer folder or file; download it with `lidargen download`"
        )
    stats = weights[0].parent / "mean_std.pt"
    return TokenizerFiles(weights, stats if stats.is_file() else None)


def _with_partner(path: Path) -> tuple[Path, ...]:
    """Encoder and decoder files come in pairs; any other file stands alone."""
    match = re.fullmatch(r"(.*_)?(encoder|decoder|enc|dec)", path.stem)
    if not match:
        return (path,)
    halves = ("encoder", "decoder") if len(match[2]) > 3 else ("enc", "dec")
    pair = tuple(path.with_name((match[1] or "") + half + path.suffix) for half in halves)
    for half in pair:
        if not half.is_file():
            raise CheckpointError(
                f"{half}: missing beside {path.name}; a tokenizer needs both, download it again"
            )
    return pair


def _in_folder(folder: Path) -> tuple[Path, ...]:
    names = [
        CONVERTED,
        "encoder.safetensors",
        "decoder.safetensors",
        "encoder.jit",
        "decoder.jit",
        "autoencoder.pt",
    ]
    latest = folder / "latest_checkpoint.txt"
    if latest.is_file():
        names.insert(0, latest.read_text().strip())
    for name in names:
        if name and (folder / name).is_file():
            return _with_partner(folder / name)
    present = ", ".join(sorted(p.name for p in folder.iterdir())[:LISTED]) or "nothing"
    raise CheckpointError(
        f"{folder}: holds no tokenizer (encoder.jit and decoder.jit, iter_*.pt, autoencoder.pt or {CONVERTED}), "
        f"but {present}; download it with `lidargen download`"
    )


def _load_weights(files: TokenizerFiles, num_groups: int | None, ema: bool, reference: bool) -> Tokenizer:
    state: dict[str, Tensor] = {}
    config = None
    for file in files.weights:
        part, metadata = read_state(file, ema)
        state |= part
        if METADATA_KEY in metadata:
            config = TokenizerConfig.from_dict(json.loads(metadata[METADATA_KEY]))
            config = replace(config, num_groups=num_groups or config.num_groups)
    saved = {name: state.pop(f"latent.{name}") for name in ("mean", "std") if f"latent.{name}" in state}
    names = " + ".join(map(str, files.weights))
    try:
        network = network_from_state(state, config or infer_config(state, num_groups), reference)
    except CheckpointError as error:
        raise type(error)(f"{names}: {error}") from error
    return Tokenizer(network, LatentStats(**saved) if len(saved) == 2 else None)


def network_from_state(
    state: Mapping[str, Tensor], config: TokenizerConfig, reference: bool = False
) -> TokenizerNetwork:
    """Network whose parameters *are* the given tensors; every key must be used and every parameter given."""
    with torch.device("meta"):
        network = build_network(config, reference)
    state = dict(state)
    for name, module in network.named_modules():
        if isinstance(module, Patcher):
            # Training checkpoints lack these constants.
            for key, value in module.published_buffers().items():
                state.setdefault(f"{name}.{key}", value)
    check_keys({key: tuple(value.shape) for key, value in network.state_dict().items()}, state)
    network.load_state_dict(state, strict=True, assign=True)
    return network


def check_keys(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor]) -> None:
    """``CheckpointError`` that lists missing keys, unexpected keys and wrong shapes, if there are any."""
    wrong = [
        f"{key} is {tuple(given[key].shape)} instead of {shape}"
        for key, shape in expected.items()
        if key in given and tuple(given[key].shape) != shape
    ]
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "wrong shape": wrong,
    }
    text = "; ".join(f"{len(found)} {what}: {listed(found)}" for what, found in problems.items() if found)
    if text:
        raise CheckpointError(
            f"weights do not fit the network: {text}; is the file complete and of this tokenizer?"
        )


def read_state(path: Path, ema: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name (no prefix) and metadata of one weights file of any kind."""
    if is_torchscript(path):
        return read_torchscript(path), {}
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(
                f"{path}: damaged safetensors file ({first_line(error)}); get it again"
            ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint of plain tensors ({first_line(error)}); it is damaged or not one, "
            "get it again"
        ) from error
    return training_state(content, path, ema), {}


def training_state(content: Any, path: Path, ema: bool) -> dict[str, Tensor]:
    """Network weights of a training checkpoint: bare or under "model", prefixed "network.", "ema.network-" or not."""
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{path}: holds no dict of tensors, bare or under 'model'; it is not a tokenizer checkpoint"
        )
    averaged = {
        key.removeprefix("ema.network-").replace("-", "."): value
        for key, value in content.items()
        if key.startswith("ema.network-")
    }
    if ema and not averaged:
        raise CheckpointError(f"{path}: holds no averaged (ema.*) weights; load it without ema")
    # The training losses keep their own weights in the same dict.
    plain = {key: value for key, value in content.items() if not key.startswith(("ema.", "loss."))}
    if ema or not plain:
        return averaged
    return {key.removeprefix("network."): value for key, value in plain.items()}


def allow_running(files: Collection[Path], reason: str, trust: bool, published: Collection[str]) -> None:
    """Say that code of these TorchScript files will run, or raise ``CheckpointError`` if nobody vouches for them."""
    unknown = [str(path) for path in files if file_sha256(path) not in published]
    if unknown and not trust:
        raise CheckpointError(
            f"{reason}. Loading it would run code inside {', '.join(unknown)}, whose sha256 is not a published one; "
            "pass --trust if you trust where it comes from"
        )
    log.warning("%s; running the code inside %s", reason, ", ".join(map(str, files)))
