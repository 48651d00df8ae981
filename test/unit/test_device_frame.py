# SPDX-License-Identifier: Apache-2.0
"""What a frame costs where every graph is on the device: one upload, one replay, one download. On a fake of TensorRT."""

from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import FakeApi, FakeCuda, FakeEngine
from raw_pictures import raw_picture

torch = pytest.importorskip("torch")

from lidargen_ros.cameras.align import align  # noqa: E402
from lidargen_ros.cameras.rig import load_rig  # noqa: E402
from lidargen_ros.engines.tensorrt_engine import TensorRTEngine  # noqa: E402
from lidargen_ros.engines.torch_engine import TorchEngine  # noqa: E402
from lidargen_ros.frame_pipeline import FramePipeline, Limits, Points  # noqa: E402
from lidargen_ros.models.frame_graphs import frame_graphs  # noqa: E402
from lidargen_ros.models.student import Student, StudentConfig  # noqa: E402
from lidargen_ros.models.student_weights import folded  # noqa: E402
from lidargen_ros.sensors import Sensor  # noqa: E402

TILE, SIZE = (32, 64), (72, 128)
SENSOR = Sensor(name="toy", elevations_deg=np.linspace(10, -20, 16), columns=72)
LIMITS = Limits(0.0, 0.5, 120.0)
CONFIG = StudentConfig(
    hypotheses=2, full=4, fine=4, patch=8, mid=8, coarse=16, head_width=8, encoder_blocks=(1, 1, 1, 1),
    denoiser_blocks=(1, 1, 1), spread=True,
)  # fmt: skip
ALIGNED = align(load_rig("published"), SENSOR, tile=TILE, hypotheses=(10.0, 1000.0))
RGB = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)


def toy_graphs(pixels=True):
    torch.manual_seed(0)
    return frame_graphs(folded(Student(CONFIG)), SENSOR, pixels=pixels)


def fake_engine(graph, cuda):
    def function(*inputs):
        with torch.no_grad():
            results = graph.module(*(torch.from_numpy(value) for value in inputs))
        return [r.numpy() for r in (results if isinstance(results, tuple) else (results,))]

    inputs, outputs = (
        {name: tuple(-1 if isinstance(n, str) else n for n in shape) for name, (_, shape) in specs.items()}
        for specs in (graph.signature.inputs, graph.signature.outputs)
    )
    dtypes = {n: dtype for n, (dtype, _) in (graph.signature.inputs | graph.signature.outputs).items()}
    return FakeEngine(function, inputs, outputs, cuda, dtypes, largest=1000)


@pytest.fixture
def cuda():
    return FakeCuda()


@pytest.fixture
def pipeline(cuda):
    graphs = toy_graphs()
    api = FakeApi({f"{name}.engine": fake_engine(graph, cuda) for name, graph in graphs.items()})
    engine = TensorRTEngine({name: Path(f"{name}.engine") for name in graphs}, api, cuda=cuda)
    return FramePipeline(engine, TILE, SENSOR.shape)


@pytest.mark.parametrize(
    ("encoding", "bytes_per_pixel"),
    [("rgb8", 3), ("bgr8", 3), ("bayer_rggb8", 1), ("uyvy", 2), ("nv12", 1.5)],
)
@pytest.mark.parametrize("steps", [1, 4])
def test_a_frame_is_one_upload_one_replay_and_one_download(pipeline, cuda, encoding, bytes_per_pixel, steps):
    pictures = [raw_picture(rgb, encoding) for rgb in RGB]

    def frame():
        return pipeline.points(pictures, ALIGNED, LIMITS, steps=steps, seed=0, cloud=True)

    frame()
    counted = ("allocated", "pinned_arrays", "replays", "waits")
    before = {name: getattr(cuda, name) for name in counted}
    cuda.uploads.clear()
    cuda.downloads.clear()
    found = frame()
    grown = {name: getattr(cuda, name) - value for name, value in before.items()}
    assert grown == {"allocated": 0, "pinned_arrays": 0, "replays": 1, "waits": 1}
    assert cuda.uploads == [3 * SIZE[0] * SIZE[1] * bytes_per_pixel]
    assert sorted(cuda.downloads) == sorted(getattr(found, name).nbytes for name in Points._fields)
    expected = FramePipeline(TorchEngine(toy_graphs(), device="cpu"), TILE, SENSOR.shape).points(
        pictures, ALIGNED, LIMITS, steps=steps, seed=0, cloud=True
    )
    for name, value in found._asdict().items():
        np.testing.assert_allclose(value, getattr(expected, name), rtol=1e-5, atol=1e-5, err_msg=name)


def test_encodings_and_sizes_may_change_from_frame_to_frame(pipeline):
    host = FramePipeline(TorchEngine(toy_graphs(pixels=False), device="cpu"), TILE, SENSOR.shape)
    assert host.raw_encodings == {"rgb8"}
    frames = {
        "bgr8": RGB, "nv12": RGB, "rgb8": RGB[:, :64, :96], "mono8": RGB, "uyvy": RGB[:, :16], "yuyv": RGB,
    }  # fmt: skip
    for encoding, rgb in frames.items():
        pictures = [raw_picture(picture, encoding) for picture in rgb]
        found, expected = (p.maps(pictures, ALIGNED, steps=1, seed=0).range_m for p in (pipeline, host))
        assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected), encoding
