# SPDX-License-Identifier: Apache-2.0
"""Readings of memory and GPU, with a double of NVML: none of the machines that run this has to have a GPU."""

import logging
import os
from types import SimpleNamespace as Thing

import numpy as np
import pytest
from stub_node import StubGenerator, rig

from lidargen_ros.ros import gauges, preview
from lidargen_ros.ros.gauges import Gauges, freed
from lidargen_ros.ros.logs import LogBridge


class NVMLError(Exception):
    """As of pynvml."""


def fake_nvml(**changes):
    """What the node uses of nvidia-ml-py, for a machine with two GPUs."""

    def by_index(index: int) -> str:
        return f"gpu {index}"

    mine = Thing(pid=os.getpid(), usedGpuMemory=1_500_000_000)
    module = Thing(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=by_index,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetMemoryInfo=lambda gpu: Thing(used=2e9 if gpu == "gpu 1" else 1e9, total=8e9),
        nvmlDeviceGetComputeRunningProcesses=lambda gpu: [Thing(pid=1, usedGpuMemory=9), mine],
        nvmlDeviceGetTemperature=lambda gpu, kind: 61,
        nvmlDeviceGetUtilizationRates=lambda gpu: Thing(gpu=37),
    )
    for name, value in changes.items():
        setattr(module, name, value)
    return module


@pytest.fixture
def with_nvml(monkeypatch):
    def install(module):
        monkeypatch.setattr(gauges.compat, "optional", lambda name: module)

    return install


def test_what_nvml_tells_of_the_visible_gpu(with_nvml, monkeypatch) -> None:
    with_nvml(fake_nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    found = Gauges().read()
    assert found.pop("resident_mb") > 10
    assert found == {
        "gpu_used_mb": 2000.0,
        "gpu_total_mb": 8000.0,
        "gpu_own_mb": 1500.0,
        "gpu_temperature_c": 61,
        "gpu_load": 0.37,
    }


def fails(*_: object) -> None:
    raise NVMLError("Driver Not Loaded")


def test_without_a_driver_or_a_package_the_reason_is_kept(with_nvml) -> None:
    with_nvml(fake_nvml(nvmlInit=fails))
    made = Gauges()
    assert set(made.read()) <= {"resident_mb", "gpu_temperature_c"}
    assert made.unreadable == "NVML: Driver Not Loaded"
    with_nvml(None)
    assert Gauges().unreadable == "nvidia-ml-py is not installed"


def test_a_gpu_that_does_not_tell_its_memory_still_tells_its_temperature(with_nvml) -> None:
    with_nvml(fake_nvml(nvmlDeviceGetMemoryInfo=fails))
    made = Gauges()
    assert made.read()["gpu_temperature_c"] == 61
    assert made.unreadable == "NVML memory: Driver Not Loaded"


def test_a_jetson_tells_its_temperature_through_a_thermal_zone(tmp_path) -> None:
    for i, (kind, value) in enumerate(
        (("cpu-thermal", "50000"), ("gpu-thermal", "not now"), ("GPU-therm", "48500"))
    ):
        zone = tmp_path / f"thermal_zone{i}"
        zone.mkdir()
        (zone / "type").write_text(kind + "\n")
        (zone / "temp").write_text(value + "\n")
    assert gauges.zone_temperature_c(tmp_path) == 48.5
    assert gauges.zone_temperature_c(tmp_path / "none") is None


def test_memory_that_was_freed_is_seen(with_nvml) -> None:
    with_nvml(None)
    made = Gauges()
    held = [np.ones(1 << 17) for _ in range(100)]
    before = made.read()
    held.clear()
    after = made.settle()
    assert before["resident_mb"] - after["resident_mb"] > 80
    assert freed(before, after).startswith(f"host memory {before['resident_mb']:.0f} -> ")
    assert "GPU memory 1500 -> 0 MB" in freed({"gpu_own_mb": 1500.0}, {})


def test_the_library_s_log_becomes_the_node_s() -> None:
    said: list[str] = []
    heard: list[str] = []
    logger = Thing(info=said.append, warning=said.append, error=said.append)
    bridge = LogBridge(logger, heard.append)
    source = logging.getLogger("lidargen_ros.engines.somewhere")
    source.info("building engine %s", "decoder")
    source.debug("not this")
    source.error("out of memory")
    bridge.close()
    source.error("nobody hears")
    assert said == heard == ["building engine decoder", "out of memory"]


def test_the_preview_orders_cameras_as_the_map_does_and_lives_with_holes() -> None:
    generator = StubGenerator("stub")
    images = [np.full((352, 640, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    sweep = generator(images)
    picture = preview.preview_picture(images, rig(), sweep, 900)
    corners = [picture[2, x] for x in (2, 302, 602)]  # the sky, where no point is drawn
    assert [int(c.argmax()) for c in corners] == [1, 0, 2]  # rear left, front, rear right
    with_hole = preview.preview_picture([images[0], None, images[2]], rig(), sweep, 900)
    assert with_hole.shape == picture.shape
    assert not with_hole[2, 2].any()
