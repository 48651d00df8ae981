# SPDX-License-Identifier: Apache-2.0
"""What the node itself costs, without inference: CPU per frame of its thread and its process, latency, losses.

    python tools/bench_node.py [--seconds 20] [--rate 10] [--compressed] [--point-type xyzirc] [--range-image] [--json]
    python tools/bench_node.py --memory BUNDLE [--engine auto] [--out FILE]     # of host and GPU, over configure and cleanup

Three processes over DDS on an own domain of the loopback, tuned as the launch files tune them: three cameras of
1280 x 720, the real node around a generator that only hands out a finished 128 x 1800 sweep, and this process, which
subscribes the clouds. Budget (docs/node.md): 10 ms per frame on the node's thread, 15 ms of process CPU, on 2 cores.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lidargen_ros.cameras import PinholeCamera, Rig, View
from lidargen_ros.ros import compat
from lidargen_ros.ros.gauges import resident_mb
from lidargen_ros.ros.processes import Child, Children
from lidargen_ros.sensors import Sensor
from lidargen_ros.sweep import Sweep

CAMERAS = ("front", "rear_left", "rear_right")
WIDTH, HEIGHT = 1280, 720
SETTLE_S = 1.0
THREAD_MS, PROCESS_MS = 10.0, 15.0
"""The budget per frame."""


class EmptyGenerator:
    """Hands out one finished sweep: what remains of a frame is the node's own work."""

    def __init__(self, bundle: str, **options: Any) -> None:
        camera = PinholeCamera(WIDTH, HEIGHT, 600.0, 600.0, 639.5, 359.5)
        pose = np.eye(4)
        pose[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
        self.rig, self.return_threshold = Rig(tuple(View(n, camera, pose) for n in CAMERAS), "bench"), 0.5
        self.sensor = Sensor("bench", np.linspace(15, -25, 128), columns=1800)
        ranges = np.random.default_rng(0).uniform(2, 80, self.sensor.shape).astype(np.float32)
        ranges[:, ::9] = 0
        self._maps = ranges, np.full(self.sensor.shape, 0.5, np.float32)

    raw_encodings = frozenset({"rgb8"})

    def set_rig(self, rig: Rig) -> None:
        self.rig = rig

    def __call__(self, images: Sequence[NDArray | None], *_: Any, stamp_ns: int = 0, **options: Any) -> Sweep:
        return Sweep(self._maps[0], self.sensor, stamp_ns, intensity=self._maps[1])

    def describe(self) -> dict[str, Any]:
        return {"model": "none", "engine": "none", "machine": "bench"}

    def close(self) -> None:
        """Nothing to free."""


def node() -> int:
    """The process under test."""
    from lidargen_ros.ros.node import main as run

    return run(make_generator=EmptyGenerator)


def cameras(rate_hz: float, compressed: bool) -> None:
    """Three cameras as drivers publish them: best effort, stamped as they are sent, until the process is ended."""
    import rclpy
    from sensor_msgs.msg import CompressedImage, Image

    rclpy.init()
    publisher_node = rclpy.create_node("cameras")
    kind, suffix = (CompressedImage, "/compressed") if compressed else (Image, "")
    publishers = [
        publisher_node.create_publisher(kind, f"/{c}/image{suffix}", rclpy.qos.qos_profile_sensor_data)
        for c in CAMERAS
    ]
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (45, 80, 3), np.uint8), (WIDTH, HEIGHT))
    message = kind()
    if compressed:
        message.format, message.data = "jpeg", cv2.imencode(".jpg", picture)[1].tobytes()
    else:
        message.encoding, message.height, message.width, message.step = "rgb8", HEIGHT, WIDTH, 3 * WIDTH
        message.data = picture.tobytes()
    due = time.monotonic()
    while rclpy.ok():
        stamp = publisher_node.get_clock().now().to_msg()
        for publisher in publishers:
            message.header.stamp = stamp
            publisher.publish(message)
        due += 1 / rate_hz
        time.sleep(max(0.0, due - time.monotonic()))


def cpu_seconds(pid: int) -> tuple[float, float]:
    """(main thread, whole process) so far."""
    thread = int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return thread, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(lidar: Child, seconds: float, range_image: bool) -> dict[str, Any]:
    """Subscribe, let it settle, measure."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import Image, PointCloud2
    from std_msgs.msg import Header
    from std_srvs.srv import Trigger

    rclpy.init()
    listener = rclpy.create_node("listener")
    executor = SingleThreadedExecutor()
    executor.add_node(listener)
    delays: list[float] = []

    def arrived(data: bytes) -> None:
        now = time.time()
        # A message begins as its header does, and the rest is not looked at: this process must not take the cores.
        stamp = deserialize_message(data[:256], Header).stamp
        delays.append(now - stamp.sec - stamp.nanosec / 1e9)

    listener.create_subscription(PointCloud2, "/points", arrived, 5, raw=True)
    if range_image:
        listener.create_subscription(Image, "/range_image", lambda _: None, 5, raw=True)
    client = listener.create_client(Trigger, "/lidargen/statistics")

    def spin(duration: float) -> None:
        end = time.monotonic() + duration
        while (left := end - time.monotonic()) > 0:
            executor.spin_once(timeout_sec=left)

    def books() -> dict[str, Any]:
        future = client.call_async(Trigger.Request())
        executor.spin_until_future_complete(future, 5.0)
        if not future.done():
            raise RuntimeError(f"the node does not answer; the end of its log:\n{lidar.tail()}")
        return json.loads(future.result().message)

    deadline = time.monotonic() + 30
    while not delays:
        if time.monotonic() > deadline or not lidar.running:
            raise RuntimeError(f"no cloud within 30 s; the end of the node's log:\n{lidar.tail()}")
        executor.spin_once(timeout_sec=0.1)
    spin(SETTLE_S)
    before, thread, process = books(), *cpu_seconds(lidar.pid)
    delays.clear()
    start = time.monotonic()
    spin(seconds)
    now, thread_end, process_end, took = (*[books()], *cpu_seconds(lidar.pid), time.monotonic() - start)
    rclpy.shutdown()
    frames = now["frames_in"] - before["frames_in"]
    dropped = {k: v - before["dropped_by_reason"].get(k, 0) for k, v in now["dropped_by_reason"].items()}
    p50, p95 = (round(float(q) * 1e3, 1) for q in np.percentile(delays, (50, 95)))
    return {
        "frames": frames,
        "rate_hz": round(frames / took, 2),
        "clouds_received": len(delays),
        "dropped": {k: v for k, v in dropped.items() if v},
        "thread_ms_per_frame": round((thread_end - thread) * 1e3 / frames, 2),
        "process_ms_per_frame": round((process_end - process) * 1e3 / frames, 2),
        "camera_to_cloud_ms": {"p50": p50, "p95": p95},
        "resident_mb": round(resident_mb(lidar.pid)),
        "stages_ms": {k: v.get("p50") for k, v in now["stages_ms"].items()},
    }


def memory(bundle: str, engine: str, rounds: int = 3) -> dict[str, Any]:
    """What is held before, with and after a model, round after round; printed as it goes."""
    import rclpy
    from rclpy.lifecycle import TransitionCallbackReturn

    from lidargen_ros.ros.node import LidarNode

    rclpy.init()
    values = {"bundle": bundle, "engine": engine, "autostart": False}
    lidar = LidarNode(parameter_overrides=[rclpy.Parameter(k, value=v) for k, v in values.items()])
    found: dict[str, Any] = {"bundle": bundle, "engine": engine, "readings": []}

    def told(state: str, reading: dict[str, float]) -> None:
        found["readings"].append({"state": state, **reading})
        print(f"{state:12s} {json.dumps(reading)}", flush=True)

    told("before", lidar.gauges.settle())
    for _ in range(rounds):
        if lidar.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            raise RuntimeError(f"the node could not load {bundle} on engine {engine}; its log above says why")
        told("configured", lidar.gauges.read())
        lidar.trigger_cleanup()
        told("cleaned up", lidar.gauges.read())
    found["gpu_unreadable"] = lidar.gauges.unreadable
    lidar.close()
    rclpy.shutdown()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--compressed", action="store_true", help="JPEG instead of raw images")
    parser.add_argument("--point-type", default="xyzirc")
    parser.add_argument("--range-image", action="store_true", help="subscribe the range image as well")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--memory", metavar="BUNDLE", default="", help="measure memory instead")
    parser.add_argument("--engine", default="auto", help="with --memory")
    parser.add_argument("--out", type=Path, help="with --memory: write the readings here as JSON")
    arguments = parser.parse_args()
    if arguments.memory:
        found = memory(arguments.memory, arguments.engine)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    domain = compat.free_domain_id()
    env = compat.process_environment(domain_id=domain, loopback=True)
    os.environ.update({k: env[k] for k in ("ROS_DOMAIN_ID", "FASTDDS_DEFAULT_PROFILES_FILE")})
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    me = [sys.executable, str(Path(__file__).resolve())]
    with Children(domain) as children, tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        ros = ["--ros-args", "-p", f"point_type:={arguments.point_type}"]
        lidar = children.start("node", [*me, "node", *ros], env, logs / "node.log")
        given = [str(arguments.rate), *(["compressed"] if arguments.compressed else [])]
        children.start("cameras", [*me, "cameras", *given], env, logs / "cameras.log")
        found = measure(lidar, arguments.seconds, arguments.range_image)
    if arguments.json:
        print(json.dumps(found))
        return 0
    for key, value in found.items():
        print(f"{key:22s} {value}")
    print(f"{'budget':22s} {THREAD_MS:g} ms thread, {PROCESS_MS:g} ms process")
    within = found["thread_ms_per_frame"] <= THREAD_MS and found["process_ms_per_frame"] <= PROCESS_MS
    return 0 if within else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["node"]:
        del sys.argv[1]
        sys.exit(node())
    elif sys.argv[1:2] == ["cameras"]:
        cameras(float(sys.argv[2]), "compressed" in sys.argv)
    else:
        sys.exit(main())
