# SPDX-License-Identifier: Apache-2.0
"""Records the node's topics to a rosbag2 folder: ``python -m lidargen_ros.ros.recorder FOLDER``.

Messages are written as they come over the wire, under the stamps of their headers, so that the bag lies over the
camera's bag in time. Every sweep is counted. SIGINT and SIGTERM end it with a complete index; after SIGKILL the file
can still be read up to its last megabyte.
"""

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import String

from ..bags.reader import header_stamp_ns
from ..bags.writer import BagWriter
from ..errors import DataError, LidargenError
from . import compat, qos

TYPES: dict[str, Any] = {
    "points": PointCloud2,
    "range_image": Image,
    "intensity_image": Image,
    "metadata": String,
    "/diagnostics": DiagnosticArray,
}
_LATCHED = ("metadata",)
_QUIET_S = 0.3


class Recorder:
    """Writes every message of ``topics`` to ``bag``.

    Args:
        progress: gets one line per sweep, "stamp_ns published_ns" (the publisher's wall clock), as it is written.
    """

    def __init__(self, bag: BagWriter, topics: list[str], progress: Path | None = None) -> None:
        self.node = Node("lidargen_recorder")
        self._bag = bag
        self._progress = progress.open("w") if progress else None
        self.error: DataError | None = None
        self.last = time.monotonic()
        self._newest_ns = 0
        self._early: list[
            tuple[str, str, bytes]
        ] = []  # latched messages that came before any stamp was known
        for topic in topics:
            kind = TYPES[topic]
            policy = (
                qos.latched()
                if topic in _LATCHED
                else QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
            )
            name = self.node.resolve_topic_name(topic)
            msgtype = "/".join((kind.__module__.split(".")[0], "msg", kind.__name__))
            bag.add_topic(name, msgtype, latched=topic in _LATCHED)
            take = self._taker(name, msgtype, topic)
            self.node.create_subscription(kind, topic, compat.with_published_time(take), policy, raw=True)

    def _taker(self, name: str, msgtype: str, topic: str) -> Callable[[bytes, int], None]:
        def take(raw: bytes, published_ns: int) -> None:
            self.last = time.monotonic()
            if self.error is not None:
                return
            try:
                self._write(name, msgtype, topic, raw, published_ns)
            except DataError as e:
                self.error = e

        return take

    def _write(self, name: str, msgtype: str, topic: str, raw: bytes, published_ns: int) -> None:
        if TYPES[topic] in (PointCloud2, Image):
            self._newest_ns = stamp = header_stamp_ns(raw)
            for early in self._early:
                self._bag.write(early[0], early[1], stamp, early[2])
            self._early.clear()
        elif not self._newest_ns:
            self._early.append((name, msgtype, raw))
            return
        self._bag.write(name, msgtype, self._newest_ns, raw)
        if topic == "points" and self._progress is not None:
            self._progress.write(f"{self._newest_ns} {published_ns}\n")
            self._progress.flush()

    def close(self) -> None:
        """Write what is still held; the bag itself is closed by its owner."""
        for early in self._early:
            self._bag.write(early[0], early[1], time.time_ns(), early[2])
        if self._progress is not None:
            self._progress.close()
        self.node.destroy_node()


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lidargen_recorder", description="Record the node's topics.")
    parser.add_argument("folder", type=Path, help="rosbag2 folder to make")
    parser.add_argument("--topics", nargs="+", default=list(TYPES), choices=list(TYPES), metavar="TOPIC")
    parser.add_argument("--progress", type=Path, help="file that gets one line per sweep")
    parser.add_argument("--report", type=Path, help="write the number of messages per topic as JSON")
    parser.add_argument("--no-compression", action="store_true")
    return parser.parse_args(arguments)


def main(args: list[str] | None = None) -> int:
    """Record until SIGINT or SIGTERM; exit status 0, or 1 with one line on stderr."""
    options = parse(remove_ros_args(sys.argv if args is None else args)[1:])
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    executor = SingleThreadedExecutor()
    try:
        with BagWriter(options.folder, compress=not options.no_compression) as bag:
            recorder = Recorder(bag, options.topics, options.progress)
            executor.add_node(recorder.node)
            try:
                while recorder.error is None and not (
                    stop.is_set() and time.monotonic() - recorder.last > _QUIET_S
                ):
                    executor.spin_once(timeout_sec=0.1)
                if recorder.error is not None:
                    raise recorder.error
            finally:
                recorder.close()
                if options.report:
                    options.report.write_text(json.dumps({"messages": dict(bag.counts)}))
    except LidargenError as e:
        print(f"lidargen_recorder: {e}", file=sys.stderr)
        return 1
    finally:
        executor.shutdown()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
