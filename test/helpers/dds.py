# SPDX-License-Identifier: Apache-2.0
"""A test bench over real DDS: the node as a process of its own, cameras and listeners in this one.

Import it before rclpy: Fast DDS reads its profile when the first participant is made.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lidargen_ros.resources import config_path
from lidargen_ros.ros import compat
from lidargen_ros.ros.processes import Child, Children, remove_ports

os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(config_path("fastdds_loopback.xml"))
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FAKE_TF = HERE / "fake_tf"
"""On the PYTHONPATH of a process, a double of tf2_ros, which is not among the PyPI wheels."""
CAMERAS = ("front", "rear_left", "rear_right")
PATIENCE_S = 30.0
"""Tests wait for events, not for times; this only bounds a failure on a busy machine."""


def header(stamp_ns: int, frame: str = "camera"):
    from std_msgs.msg import Header

    out = Header(frame_id=frame)
    out.stamp.sec, out.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
    return out


def raw_image(stamp_ns: int, rgb: np.ndarray, encoding: str = "rgb8", step: int | None = None):
    """An Image message whose bytes are ``rgb``, whatever its encoding says."""
    from sensor_msgs.msg import Image

    flat = np.ascontiguousarray(rgb).reshape(rgb.shape[0], -1)
    message = Image(header=header(stamp_ns), encoding=encoding, height=rgb.shape[0], width=rgb.shape[1])
    message.step = flat.shape[1] if step is None else step
    message.data = flat.tobytes()
    return message


def compressed_image(stamp_ns: int, data: bytes, form: str = "jpeg"):
    from sensor_msgs.msg import CompressedImage

    return CompressedImage(header=header(stamp_ns), format=form, data=data)


class Bench:
    """Publishers, listeners and node processes on one ROS domain of the loopback."""

    def __init__(self, folder: Path) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        self.folder, self.domain = folder, compat.free_domain_id()
        self.env = compat.process_environment(domain_id=self.domain, loopback=True)
        self.env["OMP_NUM_THREADS"] = "1"
        self.children = Children()
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=self.domain)
        self.node = rclpy.create_node("bench", context=self.context, enable_rosout=False)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._publishers: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}

    def close(self) -> None:
        self.children.__exit__(None, None, None)
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()
        remove_ports(self.domain)

    # --- processes -----------------------------------------------------------------------------------------------

    def start(self, name: str, command: list[str], **env: str) -> Child:
        log = self.folder / f"{name}{len(self.children.all)}.log"
        return self.children.start(name, command, {**self.env, **env}, log)

    def start_node(
        self, parameters: dict[str, Any] | None = None, *, active: bool = True, **env: str
    ) -> Child:
        """The real node around the stub generator; waits until it is active."""
        given = [a for k, v in (parameters or {}).items() for a in ("-p", f"{k}:={v}")]
        command = [sys.executable, str(HERE / "stub_node.py"), "--ros-args", *given]
        child = self.start("node", command, **env)
        if active:
            self.wait(
                lambda: (self.statistics(child) or {}).get("state") == "active",
                "the node to be active",
                child,
            )
        return child

    # --- talking -------------------------------------------------------------------------------------------------

    def spin(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left)

    def wait(
        self,
        condition: Callable[[], Any],
        what: str,
        child: Child | None = None,
        timeout_s: float = PATIENCE_S,
    ):
        """Spin until the condition holds; fails with what was awaited and the end of the child's log."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            if time.monotonic() > deadline or (child and not child.running):
                log = child.tail(30) if child else ""
                raise AssertionError(f"waited for {what} for {timeout_s:g} s\n{log}")
            self.executor.spin_once(timeout_sec=0.05)
        return found

    def call(self, kind: Any, name: str, request: Any, timeout_s: float = 2.0) -> Any:
        """Response of a service, or None within the time."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        if not client.wait_for_service(timeout_s):
            return None
        future = client.call_async(request)
        self.executor.spin_until_future_complete(future, timeout_s)
        return future.result() if future.done() else None

    def statistics(self, child: Child | None = None) -> dict[str, Any] | None:
        from std_srvs.srv import Trigger

        if child is not None and not child.running:
            raise AssertionError(f"{child.name} ended with {child.returncode}\n{child.tail(30)}")
        response = self.call(Trigger, "/lidargen/statistics", Trigger.Request())
        return json.loads(response.message) if response else None

    def set_parameters(self, node: str, **values: Any) -> list[Any]:
        """One result (successful, reason) each."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        wanted = [Parameter(k, value=v).to_parameter_msg() for k, v in values.items()]
        request = SetParameters.Request(parameters=wanted)
        response = self.call(SetParameters, f"/{node}/set_parameters", request, timeout_s=10.0)
        assert response is not None, f"{node} does not answer"
        return list(response.results)

    def settled(self, child: Child, frames_in: int) -> dict[str, Any]:
        """The node's books once it has counted so many frames and nothing is under way but what waits for partners."""
        found: dict[str, Any] = {}

        def done() -> bool:
            found.update(self.statistics(child) or {})
            return found.get("frames_in", 0) >= frames_in and not found["in_flight"]

        self.wait(done, f"{frames_in} frames in the books and none in flight", child)
        return found

    def listen(self, topic: str, kind: Any, *, reliable: bool = True, latched: bool = False) -> list[Any]:
        """A list that fills with the messages of a topic."""
        from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

        policy = QoSProfile(depth=50)
        policy.reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        if latched:
            policy.durability = DurabilityPolicy.TRANSIENT_LOCAL
        found: list[Any] = []
        self.node.create_subscription(kind, topic, found.append, policy)
        return found

    def heard(self, child: Child, topic: str, more_than: int = 0) -> None:
        """Wait until the node sees more than so many listeners of a topic of its own (``points``)."""

        def seen() -> bool:
            known = (self.statistics(child) or {}).get("subscribers", {})
            return known.get(topic, 0) > more_than

        self.wait(seen, f"the node to see its listener of {topic}", child)

    def forget_publishers(self) -> None:
        """Destroy them; the next image makes new ones."""
        for publisher in self._publishers.values():
            self.node.destroy_publisher(publisher)
        self._publishers.clear()

    def publisher(self, topic: str, kind: Any, *, reliable: bool = True) -> Any:
        """A publisher that the node has found, and that has found the node."""
        from rclpy.qos import QoSProfile, ReliabilityPolicy

        if topic not in self._publishers:
            policy = QoSProfile(depth=20)
            policy.reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
            self._publishers[topic] = self.node.create_publisher(kind, topic, policy)
            self.wait(
                lambda: self._matched(topic), f"the node and the publisher of {topic} to find each other"
            )
        return self._publishers[topic]

    def _matched(self, topic: str) -> bool:
        if not self._publishers[topic].get_subscription_count():
            return False
        cameras = (self.statistics() or {}).get("publishers", {})
        return any(topics.get(topic) for topics in cameras.values())

    def send(self, camera: str, message: Any, *, reliable: bool = True) -> None:
        """One image of a camera, on the topic of its type."""
        suffix = "/compressed" if hasattr(message, "format") else ""
        self.publisher(f"/{camera}/image{suffix}", type(message), reliable=reliable).publish(message)

    def send_set(self, stamp_ns: int, make: Callable[[int], Any], cameras: tuple[str, ...] = CAMERAS) -> None:
        """The same moment of every camera."""
        for camera in cameras:
            self.send(camera, make(stamp_ns))


def stamps_of(messages: Any) -> list[int]:
    """Header stamps, nanoseconds."""
    return [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in messages]


class RunningNode:
    """A node, its listener and its cameras, for many tests in a row; the first cloud has been received.

    Args:
        good: makes an image of a stamp that the node can use.
        stamps: gives the next stamp.
    """

    def __init__(self, folder: Path, good: Callable[[int], Any], stamps: Iterator[int]) -> None:
        from sensor_msgs.msg import PointCloud2

        self.good, self.stamps = good, stamps
        self.bench = Bench(folder)
        try:
            self.clouds = self.bench.listen("/points", PointCloud2)
            self.node = self.bench.start_node({"silent_after": 600.0})
            self.bench.heard(self.node, "points")
            self.goes_on()
        except BaseException:
            self.bench.close()
            raise

    def __enter__(self) -> "RunningNode":
        return self

    def __exit__(self, *_: object) -> None:
        self.bench.close()

    def cloud(self, stamp_ns: int) -> Any:
        """The cloud of a stamp; it may take a while to come."""
        wanted = f"the cloud of {stamp_ns}"
        self.bench.wait(lambda: stamp_ns in stamps_of(self.clouds), wanted, self.node)
        return next(c for c in self.clouds if stamps_of([c]) == [stamp_ns])

    def books(self) -> dict[str, Any]:
        return self.bench.settled(self.node, 0)

    def log(self) -> str:
        return self.node.log.read_text()

    def goes_on(self) -> None:
        """The next good set still becomes a cloud, and the books balance."""
        stamp = next(self.stamps)
        self.bench.send_set(stamp, self.good)
        self.cloud(stamp)
        now = self.books()
        assert now["frames_in"] == now["sweeps_out"] + now["dropped"]
        assert now["dropped"] == sum(now["dropped_by_reason"].values())
