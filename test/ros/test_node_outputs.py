# SPDX-License-Identifier: Apache-2.0
"""How the topics are sent, from a file."""

import itertools
import sys

import pytest
from drives import jpeg

pytest.importorskip("rclpy", reason="rclpy is not installed")

from dds import HERE, compressed_image

STAMPS = itertools.count(1_700_000_000_000_000_000, 100_000_000)
PARAMETERS = """
/**:
  ros__parameters:
    return_probability: true
    qos_overrides:
      /fleet/points: {publisher: {reliability: best_effort, depth: 2}}
      /fleet/front/image: {subscription: {reliability: reliable}}
"""


def good(stamp_ns: int):
    return compressed_image(stamp_ns, jpeg(50))


def test_quality_of_service_from_a_file_in_a_namespace(bench, tmp_path) -> None:
    from rclpy.qos import ReliabilityPolicy
    from sensor_msgs.msg import PointCloud2

    path = tmp_path / "parameters.yaml"
    path.write_text(PARAMETERS)
    command = [sys.executable, str(HERE / "stub_node.py"), "--ros-args", "-r", "__ns:=/fleet"]
    node = bench.start("node", [*command, "--params-file", str(path)])
    infos = bench.node.get_publishers_info_by_topic
    bench.wait(lambda: infos("/fleet/points") and infos("/fleet/range_image"), "the publishers", node)
    assert infos("/fleet/points")[0].qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    assert infos("/fleet/range_image")[0].qos_profile.reliability == ReliabilityPolicy.RELIABLE
    subscribed = bench.node.get_subscriptions_info_by_topic
    bench.wait(lambda: subscribed("/fleet/front/image/compressed"), "the subscriptions", node)
    assert subscribed("/fleet/front/image")[0].qos_profile.reliability == ReliabilityPolicy.RELIABLE
    rear = subscribed("/fleet/rear_left/image")[0].qos_profile
    assert rear.reliability == ReliabilityPolicy.BEST_EFFORT
    clouds = bench.listen("/fleet/points", PointCloud2, reliable=False)
    publishers = [
        bench.node.create_publisher(type(good(0)), f"/fleet/{c}/image/compressed", 5)
        for c in ("front", "rear_left", "rear_right")
    ]

    def cloud() -> list:
        stamp = next(STAMPS)
        for publisher in publishers:
            publisher.publish(good(stamp))
        bench.spin(0.1)
        return clouds

    bench.wait(cloud, "a cloud", node)
    assert [f.name for f in clouds[0].fields][-1] == "return_probability"
    assert clouds[0].point_step == 20
