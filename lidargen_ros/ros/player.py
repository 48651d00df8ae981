# SPDX-License-Identifier: Apache-2.0
"""Plays a bag over DDS with ``/clock``, no faster than the node keeps up: ``python -m lidargen_ros.ros.player BAG``.

Like ``ros2 bag play --clock``, which the PyPI wheels lack, and in one respect more: with ``--window`` it watches the
node's output and holds its clock while that many frames are on their way.
"""

import argparse
import importlib
import json
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import Trigger

from ..bags.reader import BagReader, header_stamp_ns
from ..errors import ConfigError, LidargenError
from . import qos
from .messages import stamp_ns

CLOCK_HZ = 40
_STRAGGLERS_S = 5.0
PATIENCE_S = 10.0
"""A frame without an answer for this long counts as dropped by the node."""


class Player:
    """Publishes the topics of a bag and, as ``/clock``, the time in it.

    Args:
        reference: topics that begin with this carry the frames that are counted and held back.
        rate: bag seconds per second.
        window: frames that may be on their way at once; 0 does not look.
        watch: topic on which the answers come, same stamps.
    """

    def __init__(self, bag: BagReader, *, reference: str, rate: float, window: int, watch: str) -> None:
        self.node = Node("lidargen_player")
        self._bag, self._reference, self._rate, self._window = bag, reference, rate, window
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._clock_publisher = self.node.create_publisher(Clock, "/clock", QoSProfile(depth=1))
        self._next_tick = 0.0
        self.on_their_way: dict[int, float] = {}
        self.skipped: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.played_at_ns: dict[int, int] = {}  # stamp -> time.time_ns() of the reference image
        self.held_s = 0.0
        self.unanswered = 0
        self._out = self._publishers()
        if window:
            self.node.create_subscription(PointCloud2, watch, self._answered, qos.subscription(20))
        self._service: Any = self.node.create_client(Trigger, "lidargen/statistics")

    def _publishers(self) -> dict[str, Any]:
        found = {}
        for topic in self._bag.topics.values():
            package, _, name = topic.msgtype.partition("/msg/")
            try:
                kind = getattr(importlib.import_module(f"{package}.msg"), name)
            except (ImportError, AttributeError):
                self.skipped[topic.name] = f"message type {topic.msgtype} is not installed"
                continue
            policy = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
            if topic.name == "/tf_static" or any(q.durability.name == "TRANSIENT_LOCAL" for q in topic.qos):
                policy.durability = DurabilityPolicy.TRANSIENT_LOCAL
            found[topic.name] = self.node.create_publisher(kind, topic.name, policy)
        return found

    @property
    def frames(self) -> int:
        """Reference images published."""
        return sum(n for topic, n in self.counts.items() if topic.startswith(self._reference))

    def statistics(self, timeout_s: float = 5.0) -> dict[str, Any] | None:
        """The node's books, or None if it does not answer."""
        if not self._service.wait_for_service(timeout_s):
            return None
        future = self._service.call_async(Trigger.Request())
        self._executor.spin_until_future_complete(future, timeout_s)
        if not future.done():
            return None
        found: dict[str, Any] = json.loads(future.result().message)
        return found

    def wait_for_node(self, subscribers: int, timeout_s: float, stop: threading.Event) -> None:
        """Until the node is active and has that many subscribers on ``points``, or ``stop``; a little longer for those
        of its other topics.

        Raises:
            ConfigError: not within the time; says what was missing.
        """
        deadline, known, ready_since = time.monotonic() + timeout_s, None, 0.0
        while time.monotonic() < deadline and not stop.is_set():
            known = self.statistics(0.5)
            images = [p for t, p in self._out.items() if t.startswith(self._reference)]
            if (
                known
                and known["state"] == "active"
                and known["subscribers"].get("points", 0) >= subscribers
                and all(p.get_subscription_count() for p in images)
            ):
                ready_since = ready_since or time.monotonic()
                # The endpoints of a process are discovered one by one; one whose QoS does not fit never is.
                if time.monotonic() - ready_since > _STRAGGLERS_S or all(
                    n >= self.node.count_subscribers(t) for t, n in known["subscribers"].items()
                ):
                    return
            self._spin(0.1)
        if stop.is_set():
            return
        state = "no answer" if known is None else f"{known['state']}, subscribers {known['subscribers']}"
        raise ConfigError(f"the node was not ready within {timeout_s:g} s: {state}; see its log")

    def play(self, stop: threading.Event, deadline: float) -> None:
        """Once through the bag, until ``stop`` or ``time.monotonic()`` passes ``deadline``."""
        anchor_ns: int | None = None
        anchor = time.monotonic()
        for message in self._bag.messages(list(self._out)):
            if anchor_ns is None:
                anchor_ns = message.time_ns
            due = anchor + (message.time_ns - anchor_ns) / 1e9 / self._rate
            while (left := due - time.monotonic()) > 0 and not stop.is_set():
                self._tick(message.time_ns - int(left * self._rate * 1e9))
                self._spin(min(left, 1 / CLOCK_HZ))
            counted = message.topic.startswith(self._reference)
            if counted:
                anchor += self._hold(stop, deadline, message.time_ns)
            if stop.is_set() or time.monotonic() > deadline:
                return
            self._tick(message.time_ns)
            if counted:
                stamp = header_stamp_ns(message.cdr())
                self.on_their_way[stamp] = time.monotonic()
                self.played_at_ns[stamp] = time.time_ns()
            self._out[message.topic].publish(message.cdr())
            self.counts[message.topic] += 1

    def drain(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait for the answers that are still on their way."""
        deadline = time.monotonic() + timeout_s
        while self.on_their_way and time.monotonic() < deadline:
            self._spin(0.05)

    def final_statistics(self, timeout_s: float = 3.0) -> dict[str, Any] | None:
        """The node's books once nothing is in flight: a cloud is on the wire before it is in the books."""
        deadline, known = time.monotonic() + timeout_s, self.statistics()
        while known and known["in_flight"] and time.monotonic() < deadline:
            self._spin(0.1)
            known = self.statistics()
        return known

    def _hold(self, stop: threading.Event, deadline: float, now_ns: int) -> float:
        """Wait while the window is full; returns the seconds by which the clock is late now."""
        start = time.monotonic()
        while self._window and len(self.on_their_way) >= self._window:
            if stop.is_set() or time.monotonic() > deadline:
                break
            self._tick(now_ns)
            self._spin(0.02)
            for stamp, since in list(self.on_their_way.items()):
                if time.monotonic() - since > PATIENCE_S:
                    del self.on_their_way[stamp]
                    self.unanswered += 1
        held = time.monotonic() - start
        self.held_s += held
        return held

    def _answered(self, message: PointCloud2) -> None:
        stamp = stamp_ns(message.header)
        for older in [t for t in self.on_their_way if t <= stamp]:
            del self.on_their_way[older]

    def _tick(self, now_ns: int) -> None:
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + 1 / CLOCK_HZ
            clock = Clock()
            clock.clock.sec, clock.clock.nanosec = divmod(now_ns, 1_000_000_000)
            self._clock_publisher.publish(clock)

    def _spin(self, seconds: float) -> None:
        self._executor.spin_once(timeout_sec=max(seconds, 0.0))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lidargen_player", description="Play a bag over DDS with /clock.")
    parser.add_argument("bag", type=Path)
    parser.add_argument("--rate", type=float, default=1.0, help="bag seconds per second")
    parser.add_argument("--loop", type=int, default=1, help="how many times; 0 is for ever")
    parser.add_argument("--reference", default="/front/image", help="topics whose frames are counted")
    parser.add_argument(
        "--window", type=int, default=0, help="hold the clock while so many frames are on their way"
    )
    parser.add_argument("--watch", default="points", help="topic of the answers")
    parser.add_argument(
        "--subscribers", type=int, default=0, help="wait until points has so many subscribers"
    )
    parser.add_argument("--ready-within", type=float, default=60.0, help="seconds for that")
    parser.add_argument(
        "--limit", type=float, default=float("inf"), help="stop after so many seconds of playing"
    )
    parser.add_argument("--report", type=Path, help="write what was played, and the node's books, as JSON")
    return parser.parse_args(arguments)


def main(args: list[str] | None = None) -> int:
    """Play; exit status 0, or 1 with one line on stderr."""
    options = parse(remove_ros_args(sys.argv if args is None else args)[1:])
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    player = None
    try:
        with BagReader(options.bag) as bag:
            player = Player(
                bag,
                reference=options.reference,
                rate=options.rate,
                window=options.window,
                watch=options.watch,
            )
            for topic, why in player.skipped.items():
                player.node.get_logger().warning(f"{topic} is not played: {why}")
            if options.subscribers:
                player.wait_for_node(options.subscribers, options.ready_within, stop)
            deadline, lap = time.monotonic() + options.limit, 0
            while (
                not stop.is_set() and time.monotonic() < deadline and (lap < options.loop or not options.loop)
            ):
                player.play(stop, deadline)
                lap += 1
            player.drain(0.0 if stop.is_set() else PATIENCE_S)
            if bag.damage:
                player.node.get_logger().error(bag.damage)
            if options.report:
                node = None if stop.is_set() else player.final_statistics()
                _report(player, bag, node, options.report)
    except LidargenError as e:
        print(f"lidargen_player: {e}", file=sys.stderr)
        return 1
    finally:
        if player is not None:
            player.node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _report(player: Player, bag: BagReader, node: dict[str, Any] | None, path: Path) -> None:
    content = {
        "frames": player.frames,
        "in_bag": sum(t.count for n, t in bag.topics.items() if n.startswith("/front/image")),
        "messages": dict(player.counts),
        "skipped": player.skipped,
        "damage": bag.damage,
        "held_s": round(player.held_s, 3),
        "unanswered": player.unanswered + len(player.on_their_way),
        "played_at_ns": {str(k): v for k, v in player.played_at_ns.items()},
        "node": node,
    }
    path.write_text(json.dumps(content))


if __name__ == "__main__":
    sys.exit(main())
