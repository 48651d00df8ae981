# SPDX-License-Identifier: Apache-2.0
"""Chooses an engine by what is installed and what the bundle holds, and says why the others were not taken."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from ..bundle import Bundle
from ..errors import EngineError
from .build_record import BuildRecord, build_folders, read_record
from .onnxruntime_engine import missing_providers
from .trt_api import current_gpu, load_tensorrt

log = logging.getLogger(__name__)
WEIGHTS = "student.safetensors"
RUNTIMES = ("tensorrt", "tensorrt-rtx")
TORCH = ("torch", "torch-compile", "torch-aoti")
# Best first. The others of ENGINES run when asked for by name: they compile for minutes before the first frame.
PREFERENCE = (*RUNTIMES, "torch", "onnxruntime-cuda", "onnxruntime-cpu")
ENGINES = (*PREFERENCE, "torch-compile", "torch-aoti", "onnxruntime-tensorrt")


def choose_engine(wanted: str, bundle: Bundle) -> str:
    """Name of the engine to use.

    Raises:
        EngineError: the wanted engine is unknown or cannot run here, or none can.
    """
    if wanted != "auto":
        if wanted not in ENGINES:
            raise EngineError(f"engine {wanted} is unknown; there are auto, {', '.join(ENGINES)}")
        if reason := obstacle(wanted, bundle):
            raise EngineError(f"engine {wanted} cannot run bundle {bundle.name} here: {reason}")
        return wanted
    passed: dict[str, str] = {}
    for name in PREFERENCE:
        reason = obstacle(name, bundle)
        if name == "torch" and not reason and current_gpu() is None:
            reason = "without a GPU onnxruntime-cpu is faster"
        if not reason:
            log.info("engine %s%s", name, "".join(f"; not {other}: {why}" for other, why in passed.items()))
            return name
        passed[name] = reason
    raise EngineError(f"no engine can run bundle {bundle.name} here: {passed}; pip install onnxruntime")


def available_engines(bundle: Bundle) -> dict[str, str]:
    """Engine -> "" where it can run the bundle on this machine, else the reason why not."""
    return {name: obstacle(name, bundle) for name in ENGINES}


def obstacle(name: str, bundle: Bundle) -> str:
    """Why an engine cannot run a bundle on this machine, with what would help; "" where it can."""
    if name in RUNTIMES:
        try:
            built_engines(name, bundle)
        except EngineError as error:
            return str(error)
        return ""
    if name in TORCH:
        return _torch_obstacle(bundle)
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed; pip install onnxruntime"
    return missing_providers(name)


def _torch_obstacle(bundle: Bundle) -> str:
    if WEIGHTS not in bundle.manifest["files"]:
        return f"the bundle has no {WEIGHTS}; export it again: python export/export_onnx.py RUN --out BUNDLE"
    absent = [m for m in ("torch", "safetensors") if importlib.util.find_spec(m) is None]
    if absent:
        return f"{' and '.join(absent)} not installed; pip install 'lidargen_ros[torch]'"
    if current_gpu() is not None:  # only then is the import worth its seconds
        import torch

        if not torch.cuda.is_available():
            return f"torch {torch.__version__} does not use the GPU; install torch for CUDA"
    return ""


def built_engines(name: str, bundle: Bundle) -> tuple[Path, BuildRecord]:
    """Folder of the whole engines that were built from this bundle for this GPU and runtime, and their record.

    Raises:
        EngineError: there are none: why, and the command that builds them.
    """
    gpu = current_gpu()
    if gpu is None:
        raise EngineError("no NVIDIA GPU with its driver here")
    version = load_tensorrt(name).version
    command = f"build engines: python export/build_engine.py {bundle.path} --runtime {name}"
    reasons = []
    for folder in build_folders(bundle.path, bundle.name, bundle.digest):
        try:
            record = read_record(folder)
        except EngineError as error:
            reasons.append(str(error))  # another folder may hold whole ones
            continue
        if record.runtime != name:
            continue
        reason = record.mismatch(bundle.manifest["files"], version, gpu.capability) or record.damage(folder)
        if not reason:
            return folder, record
        reasons.append(f"{folder.name}: {reason}")
    raise EngineError(f"{'; '.join(reasons) or 'no engines are built'}; {command}")
