# SPDX-License-Identifier: Apache-2.0
"""``lidargen info``, ``picture`` and ``view`` on bags with all there is, and on bags that lack something."""

import json
import shutil

import cv2
import numpy as np
import pytest
from rosbags.typesys import get_typestore
from toy_bag import ToyBag
from typer.testing import CliRunner

from lidargen_ros.bags.reader import STORE, BagReader
from lidargen_ros.bags.writer import BagWriter
from lidargen_ros.bundle import SHIPPED
from lidargen_ros.cameras import load_rig
from lidargen_ros.cli import app
from lidargen_ros.errors import BundleError, DataError
from lidargen_ros.looking.contents import look_into
from lidargen_ros.looking.info import about_bag, about_bundle
from lidargen_ros.looking.moment import Bags, Wanted
from lidargen_ros.sensors import Sensor

SENSOR = Sensor("toy generated", np.linspace(10, -20, 16), 72)
types = get_typestore(STORE).types


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    path = tmp_path_factory.mktemp("bags") / "drive"
    ToyBag(seconds=0.5, motion="tf").write(path)
    return path


@pytest.fixture(scope="module")
def generated(tmp_path_factory, drive):
    """What a generator writes beside a drive: a cloud of 20 m everywhere at every true cloud, and its metadata."""
    path = tmp_path_factory.mktemp("bags") / "generated"
    contents = look_into(drive)
    rig = Bags([drive]).moment().rig
    about = {
        "sensor": SENSOR.to_dict(), "rig": rig.to_dict(), "cameras": [v.name for v in rig],
        "model": {"model": "toy"}, "frame_id": contents.lidars[0].frame,
    }  # fmt: skip
    points = (20 * SENSOR.directions()).astype("<f4")
    field = types["sensor_msgs/msg/PointField"]
    with BagReader(drive) as bag, BagWriter(path) as out:
        out.add_topic("/lidargen/metadata", "std_msgs/msg/String", latched=True)
        for message in bag.messages([contents.lidars[0].topic]):
            if not out.counts:
                text = types["std_msgs/msg/String"](data=json.dumps(about))
                out.write("/lidargen/metadata", "std_msgs/msg/String", message.time_ns, out.serialize(text))
            cloud = types["sensor_msgs/msg/PointCloud2"](
                header=message.decode().header, height=16, width=72,
                fields=[field(name=n, offset=4 * i, datatype=7, count=1) for i, n in enumerate("xyz")],
                is_bigendian=False, point_step=12, row_step=12 * 72,
                data=np.frombuffer(points.tobytes(), np.uint8), is_dense=True,
            )  # fmt: skip
            out.write("/lidargen/points", cloud.__msgtype__, message.time_ns, out.serialize(cloud))
    return path


# --- info


@pytest.mark.parametrize("kind", ["mcap", "ros1"])
def test_a_complete_drive_can_be_used(tmp_path, drive, kind):
    path = drive
    if kind == "ros1":
        path = tmp_path / "drive.bag"
        ToyBag(seconds=0.2, motion="tf").write(path, kind)
    contents = look_into(path)
    assert len(contents.cameras) == 3
    assert all(c.camera is not None and not c.lacks for c in contents.cameras)
    uses = contents.uses()
    assert [not reason for reason in uses.values()] == [True, True, False]
    assert "no generated clouds yet" in list(uses.values())[2]
    assert 0.1 < contents.seconds < 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"camera_info": False}, "no CameraInfo beside it"),
        ({"static_tf": False}, "no transform from"),
        ({"corrupt_pictures": ((0, 0),)}, "truncated JPEG"),
    ],
)
def test_what_is_missing_is_named(tmp_path, options, words):
    ToyBag(seconds=0.2, **options).write(tmp_path / "bag")
    contents = look_into(tmp_path / "bag")
    assert any(words in line for camera in contents.cameras for line in camera.lacks)
    assert next(iter(contents.uses().values())) or not all(camera.size for camera in contents.cameras)


def test_topics_that_only_look_like_cameras(tmp_path):
    image = types["sensor_msgs/msg/Image"]
    header = types["std_msgs/msg/Header"](
        stamp=types["builtin_interfaces/msg/Time"](sec=5, nanosec=0), frame_id="lidar"
    )
    depth = image(
        header=header,
        height=2,
        width=2,
        encoding="32FC1",
        is_bigendian=0,
        step=8,
        data=np.zeros(16, np.uint8),
    )
    text = types["std_msgs/msg/String"](data="frames")
    with BagWriter(tmp_path / "odd") as out:
        out.write("/range_image", depth.__msgtype__, 5, out.serialize(depth))
        out.write("/front/ffmpeg", text.__msgtype__, 5, out.serialize(text))
        out.add_topic("/lidar/points", "sensor_msgs/msg/PointCloud2")
    contents = look_into(tmp_path / "odd")
    about = about_bag(contents)
    assert not contents.cameras
    assert "not a camera" in about["topics"]["/range_image"]["what"]
    assert "republish it" in about["topics"]["/front/ffmpeg"]["what"]
    assert about["topics"]["/lidar/points"]["what"] == "empty"
    assert all(about["uses"].values())


def test_a_cut_bag_says_where(tmp_path, drive):
    shutil.copytree(drive, tmp_path / "cut")
    file = next((tmp_path / "cut").glob("*.mcap"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "cut off or damaged at byte" in run("info", tmp_path / "cut")


def test_the_command_prints_every_topic(drive, generated):
    printed = run("info", drive)
    assert "CompressedImage" in printed
    assert "yes generate a LiDAR from 3 cameras, 3 of them calibrated here" in printed
    about = json.loads(run("info", generated, "--json"))
    assert about["topics"]["/lidargen/points"]["what"].startswith("generated by toy: 1152 points, 16 x 72")
    with pytest.raises(DataError, match="no bag and no bundle"):
        run("info", "nowhere")


def test_a_bundle_is_described_and_checked(tmp_path):
    about = about_bundle("constant")
    assert about["sensor"].startswith("pandar128, 128 x 1800")
    assert about["runs here"]["onnxruntime-cpu"] == "yes"
    assert "every sha256 is right" in run("info", "constant")
    shutil.copytree(SHIPPED / "constant", tmp_path / "altered")
    with (tmp_path / "altered" / "decoder.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        run("info", tmp_path / "altered")


# --- picture


def test_true_generated_and_both(tmp_path, drive, generated):
    both = Bags([drive, generated]).moment()
    assert both.truth is not None
    assert both.generated.sensor.shape == (16, 72)
    assert np.allclose(both.generated.range_map, 20, atol=1e-4)
    assert both.generated.stamp_ns == both.truth.stamp_ns
    assert len(both.images) == len(both.rig) == 3
    alone = Bags([generated]).moment()
    assert (alone.truth, alone.rig, alone.images) == (None, None, [])
    heights = []
    for bags in ([drive, generated], [generated]):
        run("picture", *bags, "--out", tmp_path / "p.png", "--width", 320)
        picture = cv2.imread(str(tmp_path / "p.png"))
        assert picture.shape[1] == 320
        assert picture.std() > 20
        heights.append(picture.shape[0])
    assert heights[1] < heights[0]  # no row of cameras


def test_a_named_cloud_counts_as_generated_without_metadata(drive):
    moment = Bags([drive], Wanted(generated="/lidar/points")).moment()
    assert moment.truth is None
    assert moment.generated.returns.any()


def test_generated_on_the_spot(tmp_path, drive):
    run("picture", drive, "--bundle", "constant", "--out", tmp_path / "p.jpg", "--width", 320)
    assert (tmp_path / "p.jpg").stat().st_size > 5000


def test_the_nearest_of_every_topic_is_taken(drive):
    bags = Bags([drive])
    middle, start = bags.moment(), bags.moment(0.0)
    assert start.truth.stamp_ns < middle.truth.stamp_ns
    assert bags.moment(start.truth.stamp_ns / 1e9).stamp_ns == pytest.approx(start.stamp_ns, abs=1000)
    with pytest.raises(DataError, match="lies outside"):
        bags.moment(60.0)
    with pytest.raises(DataError, match="no readable camera"):
        Bags([drive], Wanted(cameras=("left",)))
    with pytest.raises(DataError, match="no usable cloud on /other"):
        Bags([drive], Wanted(truth="/other"))


def test_a_turned_lidar_and_its_cameras_turn_together(drive):
    plain, turned = Bags([drive]).moment(), Bags([drive], Wanted(yaw_deg=90)).moment()
    a, b = plain.rig.views[0].camera_to_lidar, turned.rig.views[0].camera_to_lidar
    assert np.allclose(b[:3, 2], (a[1, 2], -a[0, 2], a[2, 2]))  # y was forward: it becomes x
    shift = turned.truth.sensor.columns // 4
    same = np.abs(np.roll(plain.truth.range_map, shift, 1) - turned.truth.range_map) < 0.5
    other = np.abs(plain.truth.range_map - turned.truth.range_map) < 0.5
    assert same.mean() > 0.9 > other.mean()


# --- view


def test_one_file_for_foxglove(tmp_path, drive, generated):
    out = tmp_path / "view"
    printed = run("view", drive, generated, "--with", "foxglove", "--out", out)
    assert "Open local file" in printed
    layout = json.loads((out / "layout.json").read_text())
    with BagReader(out) as bag, BagReader(drive) as before:
        first = next(bag.messages())
        copied = [m.raw for m in bag.messages(["/camera/front/image_raw/compressed"])]
        original = [m.raw for m in before.messages(["/camera/front/image_raw/compressed"])]
        assert first.topic == "/tf_static"
        assert bag.topics["/tf_static"].count == 1
        assert bag.topics["/lidargen/points"].count
        assert copied == original
        topics = set(bag.topics)
    named = set(layout["configById"]["3D!clouds"]["topics"])
    for panel in layout["configById"].values():
        mode = panel.get("imageMode", {})
        named |= {mode[k] for k in ("imageTopic", "calibrationTopic") if k in mode}
    assert named <= topics
    contents = look_into(out)
    assert all(not c.lacks for c in contents.cameras)
    assert contents.generated_lidars


def test_cameras_that_only_a_rig_places_get_a_transform(tmp_path):
    ToyBag(seconds=0.2, static_tf=False).write(tmp_path / "drive")
    rig = load_rig("published")
    rig.save(tmp_path / "rig.yaml")
    run(
        "view",
        tmp_path / "drive",
        "--with",
        "foxglove",
        "--rig",
        tmp_path / "rig.yaml",
        "--out",
        tmp_path / "v",
    )
    contents = look_into(tmp_path / "v")
    poses = [camera.camera_to_lidar for camera in contents.cameras]
    for view in rig:
        assert any(np.allclose(view.camera_to_lidar, pose, atol=1e-6) for pose in poses)


def test_rerun_gets_every_picture_and_cloud(tmp_path, drive):
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    printed = run("view", drive, "--with", "rerun", "--out", tmp_path / "drive.rrd")
    with BagReader(drive) as bag:
        wanted = sum(t.count for t in bag.topics.values() if "image" in t.name or "PointCloud2" in t.msgtype)
    assert f"{wanted} messages in" in printed
    assert (tmp_path / "drive.rrd").stat().st_size > 10_000
