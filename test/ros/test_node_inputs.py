# SPDX-License-Identifier: Apache-2.0
"""One node, many inputs: each bad one is named once, counted, and costs nothing but itself."""

import itertools
import json

import numpy as np
import pytest
from drives import jpeg

pytest.importorskip("rclpy", reason="rclpy is not installed")

from dds import CAMERAS, RunningNode, compressed_image, stamps_of

STAMPS = itertools.count(1_700_000_000_000_000_000, 100_000_000)


def good(stamp_ns: int):
    return compressed_image(stamp_ns, jpeg(50))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A node that has already published one cloud."""
    with RunningNode(tmp_path_factory.mktemp("node"), good, STAMPS) as made:
        yield made


def test_one_cloud_per_set_with_the_stamp_of_the_front_image(running) -> None:
    bench, clouds = running.bench, running.clouds
    before = len(clouds)
    want = [next(STAMPS) for _ in range(10)]
    for stamp in want:
        for offset, camera in enumerate(CAMERAS):
            bench.send(camera, good(stamp + offset * 3_000_000))
        running.cloud(stamp)
    assert stamps_of(clouds[before:]) == want
    cloud = clouds[-1]
    assert (cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (128, 1800, 16, 28800)
    assert cloud.header.frame_id == "lidar"
    assert [f.name for f in cloud.fields] == ["x", "y", "z", "intensity", "return_type", "channel"]
    assert cloud.is_dense is False
    assert len(cloud.data) == 128 * 28800
    points = np.frombuffer(cloud.data, np.float32).reshape(128, 1800, 4)[..., :3]
    ranges = np.linalg.norm(points, axis=-1)
    assert np.isnan(ranges[:, ::9]).all()
    np.testing.assert_allclose(ranges[:, 1::9], 15.0, atol=0.5)  # 10 m + red 50 / 10


def test_range_and_intensity_images_share_the_header(running) -> None:
    from sensor_msgs.msg import Image

    bench, node = running.bench, running.node
    ranges, intensity = bench.listen("/range_image", Image), bench.listen("/intensity_image", Image)
    bench.heard(node, "range_image")
    bench.heard(node, "intensity_image")
    stamp = next(STAMPS)
    bench.send_set(stamp, good)
    cloud = running.cloud(stamp)
    bench.wait(lambda: ranges and intensity, "both images", node)
    assert ranges[-1].header == intensity[-1].header == cloud.header
    image = np.frombuffer(ranges[-1].data, np.float32).reshape(128, 1800)
    points = np.frombuffer(cloud.data, np.float32).reshape(128, 1800, 4)[..., :3]
    np.testing.assert_allclose(image, np.linalg.norm(points, axis=-1), rtol=1e-5)
    assert (ranges[-1].encoding, intensity[-1].encoding) == ("32FC1", "mono8")


def test_a_preview_only_for_those_who_ask(running) -> None:
    import cv2
    from sensor_msgs.msg import CompressedImage

    bench, node = running.bench, running.node
    found = bench.listen("/preview", CompressedImage)
    bench.heard(node, "preview")
    sent = [next(STAMPS) for _ in range(5)]
    for stamp in sent:
        bench.send_set(stamp, good)
        running.cloud(stamp)
    bench.wait(lambda: found, "a preview", node)
    assert stamps_of(found) == sent[:1]  # at most two per second
    picture = cv2.imdecode(np.frombuffer(found[0].data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (176 + 192, 960, 3)
    assert found[0].format == "jpeg"


def test_metadata_reaches_those_who_come_late(running) -> None:
    from std_msgs.msg import String

    bench, node = running.bench, running.node
    found = bench.listen("/metadata", String, latched=True)
    bench.wait(lambda: found, "the latched metadata", node)
    content = json.loads(found[0].data)
    assert len(content["sensor"]["elevations_deg"]) == 128
    assert len(content["azimuths_rad"]) == 1800
    assert content["model"]["model"] == "stub"
    assert len(content["rig"]["views"]) == 3


def test_a_truncated_jpeg_names_the_topic_and_costs_its_set(running) -> None:
    bench, node = running.bench, running.node
    before = running.books()
    stamp = next(STAMPS)
    for camera in CAMERAS:
        data = jpeg(50)
        bench.send(camera, compressed_image(stamp, data[: len(data) // 2] if camera == "rear_left" else data))
    now = bench.settled(node, before["frames_in"] + 1)
    assert now["dropped_by_reason"]["bad_image"] == before["dropped_by_reason"].get("bad_image", 0) + 1
    assert now["cameras"]["rear_left"]["bad_images"] == before["cameras"]["rear_left"]["bad_images"] + 1
    assert "/rear_left/image/compressed: truncated JPEG" in running.log()
    running.goes_on()


def test_a_missing_camera_is_named_and_comes_back(running) -> None:
    bench, node = running.bench, running.node
    before = running.books()
    for _ in range(12):
        bench.send_set(next(STAMPS), good, ("front", "rear_right"))
        bench.spin(0.02)
    running.goes_on()
    now = bench.settled(node, before["frames_in"] + 13)
    reason = "incomplete:rear_left"
    assert now["dropped_by_reason"][reason] - before["dropped_by_reason"].get(reason, 0) == 12
    assert now["sets_missing"]["rear_left"] - before["sets_missing"].get("rear_left", 0) == 12


def test_stamps_that_go_backwards_start_anew(running) -> None:
    bench = running.bench
    early = [1_600_000_000_000_000_000 + i * 100_000_000 for i in range(3)]
    for stamp in early:
        bench.send_set(stamp, good)
        running.cloud(stamp)
    assert running.books()["time_jumps"] >= 1
    assert "stamps went backwards (a bag that loops?); matching starts anew" in running.log()
    running.goes_on()


def test_duplicates_are_counted(running) -> None:
    bench, node, clouds = running.bench, running.node, running.clouds
    before = running.books()
    stamp = next(STAMPS)
    bench.send_set(stamp, good)
    running.cloud(stamp)
    bench.send_set(stamp, good)
    now = bench.settled(node, before["frames_in"] + 2)
    assert now["dropped_by_reason"]["duplicate"] == before["dropped_by_reason"].get("duplicate", 0) + 1
    assert stamps_of(clouds).count(stamp) == 1
    running.goes_on()


def test_images_without_a_stamp_are_named(running) -> None:
    bench, node = running.bench, running.node
    bench.send("front", good(0))
    bench.wait(lambda: "/front/image/compressed: images are stamped 0" in running.log(), "the message", node)
    running.goes_on()


def test_a_camera_whose_stamps_are_off_is_named_in_the_diagnostics(running) -> None:
    from diagnostic_msgs.msg import DiagnosticArray

    bench, node = running.bench, running.node
    found = bench.listen("/diagnostics", DiagnosticArray)

    def complaint() -> bool:
        stamp = next(STAMPS)
        for camera in CAMERAS:
            bench.send(camera, good(stamp + (33_000_000 if camera == "rear_right" else 0)))
        bench.spin(0.1)
        return any(
            "rear_right breaks sets: its stamps are +33 ms off" in s.message for m in found for s in m.status
        )

    bench.wait(complaint, "a diagnostic that names rear_right", node)
    status = next(s for m in found for s in m.status if "rear_right breaks sets: its" in s.message)
    assert status.name == "lidargen: cameras"
    assert status.level == b"\x01"
    assert "correct its clock or raise sync_tolerance" in status.message
    running.goes_on()


@pytest.fixture
def fresh_publishers(running):
    """A test makes publishers of its own; those after it do not inherit them: best effort may lose an image."""
    running.bench.forget_publishers()
    yield
    running.bench.forget_publishers()


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize("clouds", [True, False])
def test_every_pair_of_reliabilities(running, fresh_publishers, images, clouds) -> None:
    from sensor_msgs.msg import CompressedImage, PointCloud2

    bench, node = running.bench, running.node
    count = running.books()["subscribers"]["points"]
    found = bench.listen("/points", PointCloud2, reliable=clouds)
    bench.heard(node, "points", more_than=count)
    for camera in CAMERAS:
        bench.publisher(f"/{camera}/image/compressed", CompressedImage, reliable=images)

    def cloud() -> list:
        bench.send_set(next(STAMPS), good)
        bench.spin(0.1)
        return found

    bench.wait(cloud, "a cloud", node)


def test_the_node_says_nothing_twice_in_a_hurry(running) -> None:
    bench, node = running.bench, running.node
    before = running.log().count("truncated JPEG")
    frames = running.books()["frames_in"]
    for _ in range(10):
        bench.send_set(next(STAMPS), lambda s: compressed_image(s, jpeg(50)[:3000]))
        bench.spin(0.03)
    bench.settled(node, frames + 10)
    assert running.log().count("truncated JPEG") - before <= 6  # three topics, at most twice in 5 s
    running.goes_on()
