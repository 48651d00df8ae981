# SPDX-License-Identifier: Apache-2.0
"""Memory of this process, and memory and temperature of its GPU, where they can be read. No ROS in here."""

import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import Any

from . import compat

MB = 1e6
_ZONES = Path("/sys/class/thermal")


class Gauges:
    """Reads NVML through nvidia-ml-py where that is installed; otherwise what a loaded torch tells, and on Jetson, whose
    NVML knows no temperature, the thermal zone of the GPU.

    The GPU is the first one that ``CUDA_VISIBLE_DEVICES`` leaves visible.
    """

    def __init__(self) -> None:
        self._nvml = compat.optional("pynvml")
        self._gpu: Any = None
        self.unreadable = "" if self._nvml else "nvidia-ml-py is not installed"
        """Why NVML does not tell; empty where it does."""
        if self._nvml is None:
            return
        try:
            self._nvml.nvmlInit()
            self._gpu = self._handle(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0])
        except self._nvml.NVMLError as e:
            self.unreadable = f"NVML: {e}"

    def _handle(self, first: str) -> Any:
        assert self._nvml is not None
        if first.isdigit():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(first))
        return self._nvml.nvmlDeviceGetHandleByUUID(first)

    def read(self) -> dict[str, float]:
        """Whatever can be read now: ``resident_mb``, ``gpu_used_mb``, ``gpu_total_mb``, ``gpu_own_mb``,
        ``gpu_temperature_c``, ``gpu_load`` (a share of 1)."""
        found = {"resident_mb": resident_mb()}
        if self._gpu is not None:
            found.update(self._read_nvml())
        elif (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
            free, total = torch.cuda.mem_get_info()
            found.update(gpu_used_mb=(total - free) / MB, gpu_total_mb=total / MB)
        if "gpu_temperature_c" not in found and (celsius := zone_temperature_c()) is not None:
            found["gpu_temperature_c"] = celsius
        return {name: round(value, 3) for name, value in found.items()}

    def _read_nvml(self) -> dict[str, float]:
        nvml, gpu = self._nvml, self._gpu
        assert nvml is not None

        def memory() -> dict[str, float]:
            known = nvml.nvmlDeviceGetMemoryInfo(gpu)
            return {"gpu_used_mb": known.used / MB, "gpu_total_mb": known.total / MB}

        def own() -> dict[str, float]:
            mine = [p for p in nvml.nvmlDeviceGetComputeRunningProcesses(gpu) if p.pid == os.getpid()]
            return {"gpu_own_mb": (mine[0].usedGpuMemory or 0) / MB} if mine else {}

        def temperature() -> dict[str, float]:
            return {"gpu_temperature_c": nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)}

        def load() -> dict[str, float]:
            return {"gpu_load": nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100}

        found: dict[str, float] = {}
        for part in (memory, own, temperature, load):
            try:
                found.update(part())
            except nvml.NVMLError as e:  # an integrated GPU does not tell everything
                self.unreadable = f"NVML {part.__name__}: {e}"
        return found

    def settle(self) -> dict[str, float]:
        """Return to the system what was freed, then read: glibc keeps it otherwise, tuned as the launch files do."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
        return self.read()


def zone_temperature_c(zones: Path = _ZONES) -> float | None:
    """Temperature of the GPU's thermal zone, where Linux has one (``gpu-thermal`` on Jetson); it tells thousandths."""
    for zone in sorted(zones.glob("thermal_zone*")):
        try:
            if "gpu" in (zone / "type").read_text().lower():
                return int((zone / "temp").read_text()) / 1000
        except (OSError, ValueError):  # a zone that is switched off refuses to be read
            continue
    return None


def resident_mb(pid: int | str = "self") -> float:
    """Resident memory of a process, by default this one."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


def freed(before: dict[str, float], after: dict[str, float]) -> str:
    """What became free between two readings, in words."""
    named = {"resident_mb": "host", "gpu_own_mb": "GPU", "gpu_used_mb": "GPU (all processes)"}
    parts = [
        f"{text} memory {before[name]:.0f} -> {after.get(name, 0.0):.0f} MB"
        for name, text in named.items()
        if name in before
    ]
    return ", ".join(parts)
