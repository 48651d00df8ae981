# SPDX-License-Identifier: Apache-2.0
"""``lidargen evaluate`` on folders and on bags that the test writes."""

import json

import numpy as np
import pytest
import typer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from typer.testing import CliRunner

from lidargen_ros import evaluate
from lidargen_ros.errors import DataError, InputError
from lidargen_ros.evaluate_sources import pairs_from_bag, pairs_from_folder
from lidargen_ros.sensors import Sensor
from lidargen_ros.sweep import Sweep

SENSOR = Sensor(name="toy", elevations_deg=np.linspace(5, -20, 10), columns=72)
STORE = get_typestore(Stores.ROS2_HUMBLE)
T = STORE.types


def drive(frames=4, error=0.5):
    """True maps of a wall that comes nearer, and generated ones that are ``error`` metres too far."""
    rng = np.random.default_rng(0)
    shape = rng.uniform(20, 40, SENSOR.shape)
    true = [(shape - k).astype(np.float32) for k in range(frames)]
    for range_map in true:
        range_map[:, 5] = 0
    return [np.where(m > 0, m + np.float32(error), 0) for m in true], true


def header(k, frame="lidar", late_ns=0):
    ns = k * 100_000_000 + late_ns
    stamp = T["builtin_interfaces/msg/Time"](sec=10 + ns // 10**9, nanosec=ns % 10**9)
    return T["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)


def cloud(points, head):
    points = np.ascontiguousarray(points, np.float32)
    height, width = points.shape[:2] if points.ndim == 3 else (1, len(points))
    fields = [
        T["sensor_msgs/msg/PointField"](name=name, offset=4 * k, datatype=7, count=1)
        for k, name in enumerate("xyz")
    ]
    return T["sensor_msgs/msg/PointCloud2"](
        header=head,
        height=height,
        width=width,
        fields=fields,
        is_bigendian=False,
        point_step=12,
        row_step=12 * width,
        data=points.reshape(-1).view(np.uint8),
        is_dense=False,
    )


def image(range_map, head):
    return T["sensor_msgs/msg/Image"](
        header=head,
        height=range_map.shape[0],
        width=range_map.shape[1],
        encoding="32FC1",
        is_bigendian=0,
        step=4 * range_map.shape[1],
        data=np.ascontiguousarray(range_map, np.float32).reshape(-1).view(np.uint8),
    )


def static_transform(parent, child, xyz):
    vector, quaternion = T["geometry_msgs/msg/Vector3"], T["geometry_msgs/msg/Quaternion"]
    transform = T["geometry_msgs/msg/Transform"](translation=vector(*xyz), rotation=quaternion(0, 0, 0, 1))
    stamped = T["geometry_msgs/msg/TransformStamped"](
        header=header(0, parent), child_frame_id=child, transform=transform
    )
    return T["tf2_msgs/msg/TFMessage"](transforms=[stamped])


def write_bag(path, messages):
    """``messages``: (topic, receive time in units of 0.1 s, message)."""
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        for topic, when, message in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], round((100 + when) * 1e8), STORE.serialize_cdr(message, kind))
    return path


def bag_of(path, generated, true, *, as_image=False, frame="lidar", shift=(0, 0, 0), late_ns=0):
    messages = []
    for k, (g, t) in enumerate(zip(generated, true, strict=True)):
        points = Sweep(t, SENSOR).points() - np.asarray(shift, np.float32)
        messages.append(("/true", k, cloud(points, header(k, frame))))
        made = image(g, header(k, late_ns=late_ns)) if as_image else None
        made = made or cloud(Sweep(g, SENSOR).organised_points(), header(k, late_ns=late_ns))
        messages.append(("/made", k + 0.5, made))
    if frame != "lidar":
        messages.insert(0, ("/tf_static", 0, static_transform("lidar", frame, shift)))
    return write_bag(path, messages)


def read(bag, **options):
    return pairs_from_bag(bag, "/made", "/true", SENSOR, SENSOR, **options)


@pytest.mark.parametrize("as_image", [False, True])
def test_bag_gives_back_the_maps(tmp_path, as_image):
    generated, true = drive()
    found = read(bag_of(tmp_path / "bag", generated, true, as_image=as_image))
    np.testing.assert_allclose(found.generated, generated, rtol=1e-6)
    np.testing.assert_allclose(found.true, true, rtol=1e-6)
    assert found.previous[0] is None
    np.testing.assert_allclose(found.previous[1:], true[:-1], rtol=1e-6)
    assert found.counts == {
        "generated_found": 4,
        "true_found": 4,
        "true_without_generated": 0,
        "pairs_compared": 4,
    }


def test_a_limit_spreads_evenly_and_keeps_the_true_predecessor(tmp_path):
    generated, true = drive(6)
    found = read(bag_of(tmp_path / "bag", generated, true), limit=2)
    np.testing.assert_allclose(found.true, [true[0], true[3]], rtol=1e-6)
    np.testing.assert_allclose(found.previous[1], true[2], rtol=1e-6)


def test_clouds_in_other_frames_come_together_through_tf_static(tmp_path):
    generated, true = drive(2)
    found = read(bag_of(tmp_path / "bag", generated, true, frame="roof", shift=(0.5, -0.2, 1.0)))
    same = np.isclose(found.true, true, rtol=1e-4)
    assert same.mean() > 0.99  # rounding may move a point to the next ray
    lonely = bag_of(tmp_path / "lonely", generated, true)
    messages = [("/true", 0, cloud(Sweep(true[0], SENSOR).points(), header(0, "elsewhere")))]
    messages.append(("/made", 1, cloud(Sweep(generated[0], SENSOR).organised_points(), header(0))))
    lonely = write_bag(tmp_path / "unconnected", messages)
    with pytest.raises(DataError, match="does not connect the frames"):
        read(lonely)


def test_stamps_that_do_not_meet_and_topics_that_are_not_there(tmp_path):
    generated, true = drive(3)
    bag = bag_of(tmp_path / "bag", generated, true, late_ns=40_000_000)
    assert read(bag).counts["pairs_compared"] == 3
    with pytest.raises(DataError, match="no stamps within 30 ms"):
        read(bag, tolerance_s=0.03)
    with pytest.raises(DataError, match=r"no topic /nothing .*'/made'.*--truth"):
        pairs_from_bag(bag, "/made", "/nothing", SENSOR, SENSOR)
    other = Sensor(name="other", elevations_deg=[1.0, 0.0], columns=8)
    with pytest.raises(InputError, match="--sensor"):
        pairs_from_bag(
            bag_of(tmp_path / "images", generated, true, as_image=True), "/made", "/true", other, SENSOR
        )


@pytest.mark.parametrize("damage", ["empty", "cut", "absent"])
def test_damaged_bags_are_named(tmp_path, damage):
    bag = tmp_path / "broken.mcap"
    if damage == "empty":
        bag.write_bytes(b"")
    elif damage == "cut":
        whole = next(bag_of(tmp_path / "whole", *drive()).glob("*.mcap")).read_bytes()
        bag.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="broken"):
        read(bag)


def write_folder(folder, frames=4, **more):
    folder.mkdir(parents=True)
    (folder / "sensor.yaml").write_text(json.dumps(SENSOR.to_dict()))
    for k, (g, t) in enumerate(zip(*drive(frames), strict=True)):
        np.savez(
            folder / f"{k:03}.npz", generated=g, true=t, **{name: value(g) for name, value in more.items()}
        )
    return folder


def test_folder_with_everything_gives_every_metric(tmp_path):
    rng = np.random.default_rng(1)
    folder = write_folder(
        tmp_path / "pairs",
        returns=lambda g: (g > 0) * 0.9,
        pose=lambda g: np.eye(4),
        samples=lambda g: np.where(g > 0, g + rng.normal(0, 1, (5, *g.shape)), 0),
        intensity=lambda g: np.full(g.shape, 0.5),
        true_intensity=lambda g: np.full(g.shape, 0.25),
    )
    seen = np.zeros(SENSOR.shape, bool)
    seen[:, :36] = True
    np.save(folder / "seen.npy", seen)
    report = evaluate.evaluate(pairs_from_folder(folder, SENSOR, SENSOR))
    json.dumps(report, allow_nan=False)
    assert report["mae_m"] == pytest.approx(0.5, rel=1e-4)
    assert report["return_accuracy"] == 1
    assert report["returns"]["auroc"] == 1
    assert report["seen"]["mae_m"] == pytest.approx(0.5, rel=1e-4)
    assert report["ladder"]["previous sweep"]["mae_m"] == pytest.approx(1, rel=1e-4)
    assert report["ladder"]["previous sweep"]["frames"] == 3
    assert report["temporal_chamfer"]["true"]["frames"] == 3
    assert report["calibration"]["rays"] == 4 * 10 * 71
    assert 0 < report["calibration"]["crps_m"] < 1
    assert report["intensity"]["mae"] == pytest.approx(0.25)


def test_folders_that_hold_no_pairs_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no \.npz file"):
        pairs_from_folder(tmp_path, SENSOR, SENSOR)
    np.savez(tmp_path / "a.npz", true=np.ones((2, 2)))
    with pytest.raises(DataError, match=r"a\.npz: lacks generated"):
        pairs_from_folder(tmp_path, SENSOR, SENSOR)
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match=r"a\.npz: not a readable npz"):
        pairs_from_folder(tmp_path, SENSOR, SENSOR)


@pytest.fixture
def app():
    app = typer.Typer()
    app.callback()(lambda: None)
    evaluate.register(app)
    return app


def test_command_prints_the_ladder_and_writes_the_report(tmp_path, app):
    bag = bag_of(tmp_path / "bag", *drive())
    training = write_folder(tmp_path / "training")
    out = tmp_path / "deep" / "report.json"
    sensor = tmp_path / "toy.yaml"
    sensor.write_text(json.dumps(SENSOR.to_dict()))
    arguments = ["evaluate", str(bag), "--generated", "/made", "--truth", "/true", "--sensor", str(sensor)]
    arguments += ["--out", str(out), "--training", str(training), "--exact"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for line in ("best constant map", "nearest training sweep", "previous sweep", "bag"):
        assert line in result.output
    assert "0.500" in result.output  # the mean absolute error of the model
    report = json.loads(out.read_text())
    assert report["ladder"]["nearest training sweep"]["mae_m"] == pytest.approx(0, abs=1e-4)
    assert report["chamfer_m"]["queries_per_direction"] is None


def test_command_takes_a_run_folder_and_says_what_is_wrong(tmp_path, app):
    write_folder(tmp_path / "run" / "evaluation")
    arguments = ["evaluate", str(tmp_path / "run"), "--out", str(tmp_path / "report.json")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    for source, words in (("nothing", "does not exist"), (".", "error:")):
        result = CliRunner().invoke(app, ["evaluate", str(tmp_path / source)])
        assert result.exit_code == 1
        assert words in result.output
        assert "Traceback" not in result.output
