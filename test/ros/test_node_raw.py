# SPDX-License-Identifier: Apache-2.0
"""Raw images: every encoding, other sizes, headers that lie, and the change between raw and compressed."""

import itertools

import cv2
import numpy as np
import pytest
from drives import jpeg

pytest.importorskip("rclpy", reason="rclpy is not installed")

from dds import CAMERAS, RunningNode, compressed_image, raw_image

STAMPS = itertools.count(1_700_000_000_000_000_000, 100_000_000)
PICTURE = np.full((352, 640, 3), (50, 60, 70), np.uint8)


def good(stamp_ns: int):
    return raw_image(stamp_ns, PICTURE)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A node that has already published one cloud."""
    with RunningNode(tmp_path_factory.mktemp("node"), good, STAMPS) as made:
        yield made


def test_raw_images_of_every_encoding(running) -> None:
    """Those in ``stub_node.RAW`` reach the generator as they were sent, the others as RGB."""
    bench = running.bench
    mosaic = np.full((352, 640), 60, np.uint8)
    mosaic[0::2, 0::2], mosaic[1::2, 1::2] = 50, 70  # rggb
    encodings = {
        "rgb8": PICTURE,
        "bgr8": PICTURE[..., ::-1],
        "mono8": np.full((352, 640), 50, np.uint8),
        "bayer_rggb8": mosaic,
        "nv12": np.repeat([60, 128], [352 * 640, 176 * 640]).astype(np.uint8).reshape(528, 640),
        "yuv422": np.tile(np.array([128, 60, 128, 60], np.uint8), (352, 320)).reshape(352, 640, 2),
    }
    for encoding, pixels in encodings.items():
        stamp = next(STAMPS)

        def message(stamp_ns: int, pixels: np.ndarray = pixels, encoding: str = encoding):
            made = raw_image(stamp_ns, pixels, encoding)
            made.height = 352  # nv12 has its chroma below
            return made

        bench.send_set(stamp, message)
        cloud = running.cloud(stamp)
        points = np.frombuffer(cloud.data, np.float32).reshape(128, 1800, 4)[:, 1, :3]
        np.testing.assert_allclose(np.linalg.norm(points, axis=-1), 15.0, atol=0.3, err_msg=encoding)
    assert {c["transport"] for c in running.books()["cameras"].values()} == {"raw"}


def test_a_preview_of_pictures_that_were_left_raw(running) -> None:
    from sensor_msgs.msg import CompressedImage

    bench, node = running.bench, running.node
    found = bench.listen("/preview", CompressedImage)
    bench.heard(node, "preview")
    stamp = next(STAMPS)
    bench.send_set(stamp, lambda s: raw_image(s, np.full_like(PICTURE, (0, 0, 200)), "bgr8"))
    bench.wait(lambda: found, "a preview", node)
    picture = cv2.imdecode(np.frombuffer(found[0].data, np.uint8), cv2.IMREAD_COLOR)
    # Red, in OpenCV's order; no points up there.
    assert np.abs(picture[0, :99].mean(0) - (0, 0, 200)).max() < 5


def test_an_unknown_encoding_names_the_topic(running) -> None:
    bench, node = running.bench, running.node
    bench.send_set(stamp := next(STAMPS), lambda s: raw_image(s, PICTURE, "64FC3" if s == stamp else "rgb8"))
    bench.wait(lambda: "'64FC3'" in running.log(), "the message", node)
    assert "/front/image: image encoding '64FC3' is not supported; publish one of rgb8" in running.log()
    running.goes_on()


def test_another_size_is_used_and_odd_proportions_are_said(running) -> None:
    bench = running.bench
    stamp = next(STAMPS)
    bench.send_set(stamp, lambda s: raw_image(s, cv2.resize(PICTURE, (1280, 704))))
    running.cloud(stamp)
    assert running.books()["cameras"]["front"]["size"] == [1280, 704]
    stamp = next(STAMPS)
    bench.send_set(stamp, lambda s: raw_image(s, cv2.resize(PICTURE, (640, 640))))
    running.cloud(stamp)
    said = "rear_left: images are 640 x 640, the calibration is for 640 x 352"
    bench.wait(lambda: said in running.log(), "the diagnostics to name the camera", running.node)
    running.goes_on()


def test_a_header_that_claims_gigabytes_is_refused(running) -> None:
    bench, node = running.bench, running.node
    before = running.books()["frames_in"]
    stamp = next(STAMPS)

    def lying(s: int):
        message = raw_image(s, PICTURE)
        message.height = 4_000_000_000
        return message

    bench.send_set(stamp, lying)
    now = bench.settled(node, before + 1)
    assert now["dropped_by_reason"]["bad_image"] >= 1
    running.goes_on()


def test_compressed_images_take_over_when_raw_ones_cease(running) -> None:
    bench, node, clouds = running.bench, running.node, running.clouds
    running.goes_on()
    before = len(clouds)

    def cloud() -> bool:
        bench.send_set(next(STAMPS), lambda s: compressed_image(s, jpeg(50)))
        bench.spin(0.2)
        return len(clouds) > before

    bench.wait(cloud, "a cloud of compressed images", node)
    assert {c["transport"] for c in running.books()["cameras"].values()} == {"compressed"}
    stamp = next(STAMPS)
    for camera in CAMERAS:  # both at once, as image_transport publishes
        bench.send(camera, good(stamp))
        bench.send(camera, compressed_image(stamp, jpeg(50)))
    running.cloud(stamp)
    assert running.books()["dropped_by_reason"].get("duplicate", 0) == 0
