# SPDX-License-Identifier: Apache-2.0
"""Cameras as a process of their own that play a script of faults: ``python scripted_cameras.py front rear_left``.

Setting the parameter ``script`` plays it once; the service ``~/sent`` (Trigger) tells what became of it, as JSON:
``{"idle": bool, "stamps": {camera: [ns, ...]}}``. Several processes that play the same script are in step::

    {"start_ns": 1, "acts": [{"ticks": 20, "period_ms": 100, "faults": {"rear_left": {"every": 2}}}, {"ticks": 3}]}
"""

import heapq
import itertools
import json
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import rclpy
from dds import compressed_image
from drives import jpeg
from rcl_interfaces.msg import SetParametersResult
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import CompressedImage
from std_srvs.srv import Trigger

PERIOD_MS = 100
LEVEL = 50  # mean red of the pictures
SIZES = ((160, 88), (640, 352), (3840, 2160))


@dataclass(frozen=True)
class Fault:
    """What is wrong with a camera; the defaults are a good one."""

    every: int = 1  # sends each n-th picture only
    late_ms: float = 0.0  # arrives up to so much later, at random
    jitter_ms: float = 0.0  # stamps are off by up to so much, at random
    offset_ms: float = 0.0  # stamps are off by so much
    copies: int = 1
    swapped: bool = False  # each second picture goes out before the first
    size: tuple[int, int] = (640, 352)
    cut: bool = False  # JPEGs end in their middle


@cache
def picture(size: tuple[int, int], *, cut: bool) -> bytes:
    data = jpeg(LEVEL, size)
    return data[: len(data) // 2] if cut else data


class Cameras(Node):
    """Plays one script at a time; :meth:`work` is called whenever something is due."""

    def __init__(self, cameras: list[str]) -> None:
        super().__init__("cameras_" + "_".join(cameras), enable_rosout=False)
        self._out = {
            c: self.create_publisher(CompressedImage, f"{c}/image/compressed", QoSProfile(depth=50))
            for c in cameras
        }
        self._acts: list[dict[str, Any]] = []
        self._stamp_ns = self._tick = 0
        self._outbox: list[tuple[int, int, str, int, bytes]] = []  # due, order, camera, stamp, data
        self._order, self._random = itertools.count(), random.Random(7)
        self.sent: dict[str, list[int]] = {c: [] for c in cameras}
        self.declare_parameter("script", "")
        self.add_on_set_parameters_callback(self._on_script)
        self.create_service(Trigger, "~/sent", self._on_sent)

    def _on_script(self, parameters: list[Any]) -> SetParametersResult:
        script = json.loads(parameters[0].value)
        self._acts, self._stamp_ns, self._tick = script["acts"], script["start_ns"], 0
        self.sent = {c: [] for c in self.sent}
        return SetParametersResult(successful=True)

    def _on_sent(self, _: Any, response: Any) -> Any:
        idle = not self._acts and not self._outbox
        response.success, response.message = True, json.dumps({"idle": idle, "stamps": self.sent})
        return response

    def work(self) -> float:
        """Send what is due; returns the seconds until there is more to do."""
        now = time.time_ns()
        if self._acts and now >= self._stamp_ns:
            self._expose(self._acts[0])
        while self._outbox and self._outbox[0][0] <= now:
            _, _, camera, stamp_ns, data = heapq.heappop(self._outbox)
            self._out[camera].publish(compressed_image(stamp_ns, data))
            self.sent[camera].append(stamp_ns)
        due = [self._outbox[0][0]] if self._outbox else []
        due += [self._stamp_ns] if self._acts else []
        return max(0.0, (min(due) - time.time_ns()) / 1e9) if due else 0.1

    def _expose(self, act: dict[str, Any]) -> None:
        """All cameras at once; their pictures go to the outbox."""
        period_ns = self._ms(act.get("period_ms", PERIOD_MS))
        for camera in self._out:
            fault = Fault(**act.get("faults", {}).get(camera, {}))
            if self._tick % fault.every:
                continue
            stamp = self._stamp_ns + self._ms(fault.offset_ms)
            stamp += self._ms(self._random.uniform(-fault.jitter_ms, fault.jitter_ms))
            due = self._stamp_ns + self._ms(self._random.uniform(0, fault.late_ms))
            if fault.swapped:
                due += period_ns * (3 if self._tick % 2 == 0 else 1)
            for _ in range(fault.copies):
                data = picture(tuple(fault.size), cut=fault.cut)
                heapq.heappush(self._outbox, (due, next(self._order), camera, stamp, data))
        self._stamp_ns += period_ns
        self._tick += 1
        if self._tick == act["ticks"]:
            self._acts.pop(0)
            self._tick = 0

    @staticmethod
    def _ms(milliseconds: float) -> int:
        return round(milliseconds * 1e6)


def main() -> None:
    """Until SIGINT or SIGTERM."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    for size in SIZES:
        picture(size, cut=False)  # now, not when it is due
    cameras = Cameras(remove_ros_args(sys.argv)[1:])
    executor = SingleThreadedExecutor()
    executor.add_node(cameras)
    while not stop.is_set():
        executor.spin_once(timeout_sec=cameras.work())
    cameras.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
