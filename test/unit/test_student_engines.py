# SPDX-License-Identifier: Apache-2.0
"""A toy student as a bundle: every engine that runs here gives the same sweep; which engine is chosen, and why not another."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from raw_pictures import raw_picture  # noqa: E402

from export import student as student_export  # noqa: E402
from export.shared_weights import share_weights  # noqa: E402
from export.student import export_graphs, student_graphs  # noqa: E402
from lidargen_ros import LidarGenerator  # noqa: E402
from lidargen_ros.bundle import MANIFEST, load_bundle, write_manifest  # noqa: E402
from lidargen_ros.bundle_engines import onnx_graphs  # noqa: E402
from lidargen_ros.cameras.align import DEFAULT_HYPOTHESES, atlas  # noqa: E402
from lidargen_ros.cameras.encodings import to_rgb  # noqa: E402
from lidargen_ros.cameras.rig import load_rig  # noqa: E402
from lidargen_ros.engines import select  # noqa: E402
from lidargen_ros.engines.build_record import RECORD, BuildRecord, graph_files  # noqa: E402
from lidargen_ros.engines.onnxruntime_engine import OnnxRuntimeEngine  # noqa: E402
from lidargen_ros.engines.trt_api import Gpu  # noqa: E402
from lidargen_ros.errors import BundleError, EngineError, InputError  # noqa: E402
from lidargen_ros.frame_pipeline import DEVICE_GRAPHS, GRAPHS, FramePipeline  # noqa: E402
from lidargen_ros.models.frame_graphs import frame_graphs  # noqa: E402
from lidargen_ros.models.student import Student, StudentConfig  # noqa: E402
from lidargen_ros.models.student_weights import folded, read_student, write_student  # noqa: E402
from lidargen_ros.sensors import Sensor  # noqa: E402
from lidargen_ros.sweep import Sweep  # noqa: E402

TILE = (32, 64)
CONFIG = StudentConfig(
    full=4, fine=4, patch=8, mid=8, coarse=16, head_width=8, encoder_blocks=(1, 1, 1, 1),
    denoiser_blocks=(1, 1, 1), previous=True, spread=True,
)  # fmt: skip
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-2}  # relative L2


def write_bundle(folder, sampler):
    """A toy student; ``sampler``: with ``sample4``, which takes as long to trace as all the rest."""
    torch.manual_seed(0)
    student = Student(CONFIG)
    for layer in student.modules():  # as after training: statistics that folding must not lose
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
    sensor = Sensor(name="toy", elevations_deg=np.linspace(10, -20, 16), columns=72)
    with pytest.MonkeyPatch.context() as patch:
        if not sampler:
            patch.setattr(student_export, "student_graphs", lambda *given: student_graphs(*given)[:3])
        export_graphs(student.eval(), folder, sensor, TILE)
    write_student(folded(student), folder / select.WEIGHTS)
    graphs = list(folder.glob("*.onnx"))
    assert {path.stem for path in graphs} == {*GRAPHS, *DEVICE_GRAPHS} - (
        {"sample4"} if not sampler else set()
    )
    before = sum(path.stat().st_size for path in graphs)
    saved = share_weights(graphs, folder / select.WEIGHTS)
    assert sum(path.stat().st_size for path in graphs) < before - saved / 2
    manifest = {
        "name": "toy",
        "family": "student",
        "sensor": sensor.to_dict(),
        "rig": load_rig("published").to_dict(),
        "preprocessing": {
            "tile": TILE,
            "hypotheses": list(DEFAULT_HYPOTHESES),
            "lidar_height_m": 1.9,
        },
        "sampler": {"steps": 1, "return_threshold": 0.5},
    }
    write_manifest(folder, manifest, [*(path.name for path in graphs), select.WEIGHTS])
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundle"), sampler=False)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [*rng.integers(0, 256, (2, 72, 128, 3), dtype=np.uint8), None]


def maps_of(bundle, engine, images, steps):
    generator = LidarGenerator.from_bundle(bundle, engine=engine, threads=1)
    try:
        return generator.maps(images, steps=steps, seed=3)
    finally:
        generator.close()


def test_the_sweep_before_needs_its_motion_and_a_network_that_reads_it(bundle, images):
    generator = LidarGenerator.from_bundle(bundle, engine="onnxruntime-cpu", threads=1)
    sweep = generator(images)
    assert generator.reads_previous
    with pytest.raises(InputError, match="previous needs motion"):
        generator(images, previous=sweep)
    other = Sweep(np.zeros((8, 72), np.float32), Sensor("other", np.linspace(5, -5, 8), columns=72))
    with pytest.raises(InputError, match="give a sweep that it made"):
        generator(images, previous=other, motion=np.eye(4))


def difference(found, expected):
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("steps", [1, 3, 9])  # 3 is stepped on the device by torch, 9 by the host
def test_engines_agree(bundle, images, steps):
    expected = maps_of(bundle, "onnxruntime-cpu", images, steps)
    assert difference(maps_of(bundle, "torch", images, steps), expected) < TOLERANCE["fp32"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_device_path_agrees_from_pixels_to_points(bundle, images, precision):
    from lidargen_ros.engines.torch_engine import TorchEngine

    host = LidarGenerator.from_bundle(bundle, engine="onnxruntime-cpu", threads=1)
    loaded = load_bundle(bundle)
    graphs = frame_graphs(
        read_student(loaded.file(select.WEIGHTS)), loaded.sensor, precision=precision, pixels=True
    )
    engine = TorchEngine(graphs, device="cpu", precision=precision)
    device = LidarGenerator(loaded, FramePipeline(engine, TILE, loaded.sensor.shape))
    assert (
        difference(device.maps(images), host.maps(images)) < TOLERANCE["fp16"]
    )  # pictures within a grey level
    # The same maps, so the same decisions and the same points as on the host.
    host_side, maps = device(images), device.maps(images)
    returned = (maps.probability >= 0.5) & (maps.range_m >= 0.5) & (maps.range_m <= 120)
    np.testing.assert_array_equal(host_side.range_map, np.where(returned, maps.range_m, 0))
    np.testing.assert_array_equal(host_side.intensity, np.where(returned, maps.intensity, 0))
    cloud = device.cloud(images)
    np.testing.assert_allclose(cloud[..., :3], host_side.organised_points(), rtol=1e-6)
    np.testing.assert_array_equal(cloud[..., 3], host_side.intensity)
    assert set(device.stages(images)) == {"send", "pixels", *GRAPHS, "read"}
    # The sweep before, moved on the device.
    motion = np.eye(4)
    motion[:3, 3] = -1.0, 0.2, 0.0
    moved = [g.maps(images, previous=host_side, motion=motion) for g in (device, host)]
    assert difference(*moved) < TOLERANCE["fp16"]
    assert difference(moved[1], host.maps(images)) > 1e-3
    # Pictures of another size, of different sizes, and too small to be shrunk there.
    rng = np.random.default_rng(1)
    for sizes in ([(100, 90)] * 3, [(72, 128), (80, 128), (72, 128)], [(20, 40)] * 3):
        given = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
        assert difference(device.maps(given), host.maps(given)) < TOLERANCE["fp16"]


def on_a_device(bundle):
    """All graphs of a bundle in ONNX Runtime, as its engines on a GPU load them."""
    loaded = load_bundle(bundle)
    engine = OnnxRuntimeEngine(onnx_graphs(loaded, "onnxruntime-cuda"), threads=1)
    return LidarGenerator(loaded, FramePipeline(engine, TILE, loaded.sensor.shape))


@pytest.fixture(scope="module")
def device(bundle):
    made = on_a_device(bundle)
    yield made
    made.close()


@pytest.mark.parametrize(
    "encoding", ["rgb8", "bgr8", "bgra8", "mono8", "bayer_grbg8", "uyvy", "yuyv", "nv12", "nv21"]
)
def test_exported_graphs_go_from_raw_pictures_to_points(bundle, device, images, encoding):
    given = [None if image is None else raw_picture(image, encoding) for image in images]
    rgb = [None if image is None else to_rgb(image) for image in given]
    maps = device.maps(given)
    device.return_threshold = float(
        np.median(maps.probability)
    )  # else a network of random weights returns all rays
    cloud = device.cloud(given)
    engine = device._pipeline.engine
    seen = engine.read(("atlas",))["atlas"][: 2 * TILE[0]].astype(int)
    assert np.abs(seen - atlas(rgb, TILE)[: 2 * TILE[0]]).max() <= 1
    assert encoding in device.raw_encodings
    # The points are those of the same maps on the host.
    returned = (maps.probability >= device.return_threshold) & (maps.range_m >= 0.5) & (maps.range_m <= 120)
    assert 0 < returned.mean() < 1
    places = np.where(returned, maps.range_m, np.nan)[..., None] * device.sensor.directions()
    np.testing.assert_allclose(cloud[..., :3], places, rtol=1e-5)
    np.testing.assert_array_equal(cloud[..., 3], np.where(returned, maps.intensity, 0))
    host = LidarGenerator.from_bundle(bundle, engine="onnxruntime-cpu", threads=1)
    assert host.raw_encodings == {"rgb8"}
    assert difference(host.maps(given), host.maps(rgb)) == 0
    assert difference(maps, host.maps(rgb)) < TOLERANCE["fp16"]  # pictures within a grey level


def test_pictures_of_several_encodings_are_converted_on_the_host(device, images):
    mixed = [raw_picture(images[0], "bgr8"), images[1], raw_picture(images[1], "rgba8")]
    assert difference(device.maps(mixed), device.maps([images[0], images[1], images[1]])) == 0
    odd = [raw_picture(images[0], "bayer_rggb8")._replace(pixels=images[0][:71, :, 0])] * 3
    assert difference(device.maps(odd), device.maps([to_rgb(picture) for picture in odd])) == 0
    with pytest.raises(InputError, match="image 1 is uint8"):
        device.maps([images[0], raw_picture(images[1], "bgr8")._replace(encoding="uyvy"), None])


@pytest.mark.slow
def test_exported_samples_are_those_of_torch(images, tmp_path):
    """Four steps in one graph; the pictures shrunk before, so that both networks see the same."""
    bundle = write_bundle(tmp_path, sampler=True)
    assert (bundle / "sample4.onnx").stat().st_size < 1e5  # four networks, no weights
    small = [None if image is None else atlas([image], TILE) for image in images]
    expected = maps_of(bundle, "torch", small, 4)
    device = on_a_device(bundle)
    assert difference(device.maps(small, steps=4, seed=3), expected) < TOLERANCE["fp32"]
    assert difference(device.maps(small), expected) > 1e-2


def test_weights_that_are_no_student(tmp_path):
    path = tmp_path / "student.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(BundleError, match="holds no student"):
        read_student(path)


# --- which engine -------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU and TensorRT-RTX, as far as the choice can tell."""
    monkeypatch.setattr(select, "current_gpu", lambda: Gpu("sm_89", "a GPU"))
    monkeypatch.setattr(select, "load_tensorrt", lambda name: SimpleNamespace(version="1.7"))


def built(bundle, **changed):
    """An empty engine with a record that fits, but for what is changed."""
    folder = bundle / "engines" / "sm_89-tensorrt-rtx1.7-fp16"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.engine").write_bytes(b"")
    files = json.loads((bundle / MANIFEST).read_text())["files"]
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    values = {
        "runtime": "tensorrt-rtx", "version": "1.7", "gpu": "sm_89", "gpu_name": "", "precision": "fp16",
        "graphs": graph_files(files), "engines": {"encoder.engine": empty}, "bindings": {},
    }  # fmt: skip
    BuildRecord(**values | changed).write(folder)
    return folder


def test_auto_on_a_machine_without_a_gpu_says_why_not_another(bundle, caplog, monkeypatch):
    monkeypatch.setattr(select, "current_gpu", lambda: None)
    with caplog.at_level("INFO", logger=select.__name__):
        assert select.choose_engine("auto", load_bundle(bundle)) == "onnxruntime-cpu"
    for words in ("not tensorrt: no NVIDIA GPU", "not torch: without a GPU", "not onnxruntime-cuda"):
        assert words in caplog.text


def test_auto_takes_engines_that_were_built_for_this_gpu(bundle, gpu):
    folder = built(bundle)
    assert select.choose_engine("auto", load_bundle(bundle)) == "tensorrt-rtx"
    assert select.built_engines("tensorrt-rtx", load_bundle(bundle))[0] == folder
    damaged = folder.with_name("a_damaged_build")
    damaged.mkdir()
    (damaged / RECORD).write_text("{")
    assert select.built_engines("tensorrt-rtx", load_bundle(bundle))[0] == folder
    (damaged / RECORD).unlink()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"gpu": "sm_120"}, "built for a GPU sm_120, here is sm_89"),
        ({"version": "1.6"}, r"built with tensorrt-rtx 1\.6, here is 1\.7"),
        ({"graphs": {"encoder.onnx": "0"}}, "built from other graphs"),
        ({"engines": {"encoder.engine": "0"}}, "altered"),
        ({"engines": {"decoder.engine": "0"}}, "missing"),
        ({"runtime": "tensorrt"}, "no engines are built"),
    ],
)
def test_engines_that_are_not_for_this_machine_name_the_command(bundle, gpu, changed, words):
    built(bundle, **changed)
    with pytest.raises(EngineError, match=rf"{words}.*python export/build_engine\.py") as caught:
        select.choose_engine("tensorrt-rtx", load_bundle(bundle))
    assert "\n" not in str(caught.value)


def test_engines_of_every_name_have_a_reason_or_run(bundle, monkeypatch):
    monkeypatch.setattr(select, "current_gpu", lambda: None)
    reasons = select.available_engines(load_bundle(bundle))
    assert set(reasons) == set(select.ENGINES)
    assert {name for name, reason in reasons.items() if not reason} >= {"onnxruntime-cpu", "torch"}
