# SPDX-License-Identifier: Apache-2.0
"""Chooses an engine by what is installed and what the bundle holds, and says why the others were not taken."""

from __future__ import annotations

import importlib.util
import logging

from ..errors import EngineError

log = logging.getLogger(__name__)
PREFERENCE = ("onnxruntime-tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")


def available_engines() -> dict[str, str]:
    """Engine name -> "" where this machine can run it, else the reason why not."""
    if importlib.util.find_spec("onnxruntime") is None:
        return dict.fromkeys(PREFERENCE, "onnxruntime is not installed")
    import onnxruntime as ort

    from .onnxruntime_engine import PROVIDERS

    have = set(ort.get_available_providers())
    return {
        name: "" if have.issuperset(PROVIDERS[name]) else f"onnxruntime without {PROVIDERS[name][0]}"
        for name in PREFERENCE
    }


def choose_engine(wanted: str = "auto") -> str:
    """Name of the engine to use.

    Raises:
        EngineError: the wanted engine is unknown or cannot run here, or none can.
    """
    found = available_engines()
    if wanted != "auto":
        if wanted not in found:
            raise EngineError(f"engine {wanted} is unknown; there are auto, {', '.join(found)}")
        if found[wanted]:
            raise EngineError(
                f"engine {wanted} cannot run here: {found[wanted]}; use engine auto, or install what it needs"
            )
        return wanted
    for name, reason in found.items():
        if not reason:
            log.info("engine %s chosen; others: %s", name, {k: v for k, v in found.items() if v})
            return name
    raise EngineError(f"no engine can run here: {found}; pip install onnxruntime")
