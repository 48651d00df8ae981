# SPDX-License-Identifier: Apache-2.0
"""The published model or one of its tokenizers -> a bundle of graphs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.equality import TOLERANCE, compare
from export.graphs import Graph, save, trace
from export.published import DTYPES, DenoiserGraph, codec_graphs, denoiser_graph, tokenizer_graphs
from export.real_inputs import drive_pictures
from lidargen_ros.bundle import write_manifest
from lidargen_ros.cameras.preprocess import RESIZE_HW, preprocess
from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.errors import CheckpointError, ConfigError
from lidargen_ros.models.checkpoints import (
    check_keys,
    config_of,
    find_checkpoint,
    load_diffusion,
    open_weights,
)
from lidargen_ros.models.dit_denoiser import DiffusionModel
from lidargen_ros.models.published import SIZES_FILE, load_tokenizers, read_sizes
from lidargen_ros.models.published_options import PublishedOptions
from lidargen_ros.models.published_sampling import LatentSizes
from lidargen_ros.models.tokenizer_codec import Tokenizer
from lidargen_ros.models.tokenizer_io import load_tokenizer
from lidargen_ros.models.tokenizer_network import TokenizerNetwork
from lidargen_ros.sensors import load_sensor

log = logging.getLogger("export_onnx")
PREFIX = "model."  # of the denoiser's parameters inside its graph
WEIGHT = "net.x_embedder.proj.1.weight"  # tells the type of a checkpoint
Errors = dict[str, dict[str, float]]
LICENCE = "that of the weights it was made from"
CARD = """# {name}: {what}

Exported in {precision} with `export/export_onnx.py`. Licence: {licence}.
Equality with torch is in `metrics.json`{unchecked}.
"""


def export_tokenizer(
    source: Path,
    out: Path,
    *,
    name: str,
    version: str,
    precision: str,
    size: tuple[int, int],
    check: bool,
    trust: bool,
) -> Errors:
    """Writes encoder and decoder of a tokenizer, for single frames of ``size`` (height, width)."""
    tokenizer = load_tokenizer(source, trust=trust)
    require_layout(tokenizer)
    step = tokenizer.config.spatial_compression
    if any(n % step or not n for n in size):
        raise ConfigError(
            f"--size {size[0]}x{size[1]}: pictures for {source} need a height and a width that are multiples of {step}"
        )
    out.mkdir(parents=True, exist_ok=True)
    graphs = tokenizer_graphs(tokenizer, size, precision)
    errors, files = {}, []
    for graph in graphs:
        files += save(trace(graph), out / f"{graph.name}.onnx")
        if check:
            picture = preprocess(drive_pictures()[1][0], size, size)
            real = {"image": torch.from_numpy(picture).expand(2, -1, -1, -1)}
            if "latent" in graph.inputs:
                with torch.no_grad():
                    real = {"latent": graphs[0].module(real["image"])}
            errors[graph.name] = checked(out, graph, replace(graph, inputs=real), precision)
    kind = f"{tokenizer.config.kind} tokenizer"
    manifest = {"preprocessing": {"size": list(size)}, "sampler": {}, "tokenizer": tokenizer.config.to_dict()}
    write_bundle(out, manifest, files, errors, name, version, "tokenizer", kind, precision)
    return errors


def export_published(
    checkpoint: Path, out: Path, *, name: str, version: str, precision: str | None, check: bool, trust: bool,
    camera_tokenizer: Path | None = None, lidar_tokenizer: Path | None = None,
) -> Errors:  # fmt: skip
    """Writes condition encoder, denoiser and range decoder of a published model.

    Weights of the denoiser go from the checkpoint into the shards one by one. ``check`` needs it in memory, once in
    ``precision`` and, for bfloat16, once more in float32.
    """
    weights = find_checkpoint(checkpoint)
    sizes = read_sizes(weights.parent / SIZES_FILE)
    latent, options = sizes.get("sizes", LatentSizes()), PublishedOptions.corrected()
    camera, lidar = load_tokenizers(weights.parent, camera_tokenizer, lidar_tokenizer, trust=trust)
    for tokenizer in (camera, lidar):
        require_layout(tokenizer)
    with open_weights(weights) as opened:
        config = config_of(opened)
        with torch.device("meta"):
            check_keys(opened, DiffusionModel(config))
        stored = opened.get(WEIGHT).dtype
        precision = precision or next(p for p, dtype in DTYPES.items() if dtype == stored)
        rounded = sizes.get("rounded_positions", stored is torch.bfloat16)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    denoiser = denoiser_graph(config, latent, precision, rounded)
    model = trace(denoiser, lambda key: weight(weights, key.removeprefix(PREFIX)))
    files += save(model, out / "denoiser.onnx")
    log.info("denoiser.onnx: %d files", len(files))
    limits = (options.near_buffer, options.far_buffer)
    encoder, decoder = codec_graphs(camera, lidar, config, latent, precision, limits)
    for graph in (encoder, decoder):
        files += save(trace(graph), out / f"{graph.name}.onnx")
    resize_hw = sizes.get("resize_hw", RESIZE_HW)
    errors: Errors = {}
    if check:
        loaded = load_diffusion(weights, dtype=DTYPES[precision], rounded_positions=rounded)
        denoiser = replace(denoiser, module=DenoiserGraph(loaded))
        graphs = (encoder, denoiser, decoder)
        crop = tuple(encoder.inputs["images"].shape[-2:])
        pictures = [preprocess(p, resize_hw, crop) for p in drive_pictures()[1]]  # type: ignore[arg-type]
        chain = real_chain(graphs, torch.stack([torch.from_numpy(p) for p in pictures[: config.views - 1]]))
        errors = {g.name: checked(out, g, real, precision) for g, real in zip(graphs, chain, strict=True)}
    manifest = {
        "preprocessing": {"resize_hw": list(resize_hw), "lidar_latent": list(latent.lidar), "camera_latent": list(latent.camera)},
        "sampler": {k: getattr(options, k) for k in ("steps", "solver", "sigma_min", "sigma_max", "seed")},
    }  # fmt: skip
    sensor = sizes.get("sensor")
    write_bundle(
        out,
        manifest,
        files,
        errors,
        name,
        version,
        "published",
        "multi-view diffusion model",
        precision,
        sensor,
    )
    return errors


def require_layout(tokenizer: Tokenizer) -> None:
    """``CheckpointError`` for a tokenizer that is only code: no module of ours is equal to it."""
    if not isinstance(tokenizer.network, TokenizerNetwork):
        raise CheckpointError(
            f"the {tokenizer.config.kind} tokenizer runs as TorchScript only: its layout is unknown and it cannot be exported; "
            "get its weights as a state dict"
        )


def weight(path: Path, key: str) -> Tensor:
    """One weight of a checkpoint, mapped alone: a file that stays open would count as memory as far as it was read."""
    with open_weights(path) as opened:
        return opened.get(key)


def real_chain(graphs: Iterable[Graph], images: Tensor) -> list[Graph]:
    """The graphs with inputs that follow from real pictures; what no graph computes stays as it was."""
    values, result = {"images": images}, []
    for graph in graphs:
        graph = replace(graph, inputs={k: values.get(k, v) for k, v in graph.inputs.items()})
        result.append(graph)
        with torch.no_grad():
            values[graph.outputs[0]] = graph.module(*graph.inputs.values())
    return result


def checked(out: Path, graph: Graph, real: Graph, precision: str) -> dict[str, float]:
    """Errors of a written graph on random and real inputs.

    Raises:
        ConfigError: one is larger than the precision explains.
    """
    path = out / f"{graph.name}.onnx"
    errors = {"random": compare(path, graph), "real": compare(path, real)}
    if not max(errors.values()) <= TOLERANCE[precision]:
        raise ConfigError(
            f"{path} in {precision} differs from torch by {max(errors.values()):.2g}, more than {TOLERANCE[precision]}; "
            "export in fp32, and report it if it still does"
        )
    return errors


def write_bundle(
    out: Path, manifest: dict[str, Any], files: list[Path], errors: Errors,
    name: str, version: str, family: str, what: str, precision: str, sensor: Any = None,
) -> None:  # fmt: skip
    """Card, figures and manifest around the written graphs."""
    unchecked = "" if errors else ": not computed, as asked for"
    (out / "README.md").write_text(
        CARD.format(name=name, what=what, precision=precision, licence=LICENCE, unchecked=unchecked)
    )
    (out / "metrics.json").write_text(json.dumps({"export_error": errors or None}, indent=1) + "\n")
    described = {
        "name": name,
        "family": family,
        "version": version,
        "description": what,
        "precision": precision,
        "licence": LICENCE,
        "sensor": (sensor or load_sensor("pandar128")).to_dict(),
        "rig": load_rig("published").to_dict(),
    }
    write_manifest(out, described | manifest, [*(f.name for f in files), "README.md", "metrics.json"])
