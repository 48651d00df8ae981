# SPDX-License-Identifier: Apache-2.0
"""A node and its cameras, each a process of its own, for many faults in a row."""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dds import CAMERAS, HERE, Bench, stamps_of

from lidargen_ros.ros.processes import Child, remove_abandoned, shared_memory_of

CALM = 4
"""Pictures without a fault at the end of each script: what waits for partners is decided by them."""
HICCUPS = 2
"""Frames that a drive may lose to newer ones because the machine stood still for a moment."""


class Drive:
    """What one script did to the node: the difference of its books, and the clouds that came meanwhile.

    Attributes:
        sent: stamps per camera, in the order of sending, copies included.
        clouds: PointCloud2 messages.
    """

    def __init__(
        self, before: dict[str, Any], after: dict[str, Any], sent: dict[str, list[int]], clouds: list
    ):
        self.after, self.sent, self.clouds = after, sent, clouds
        self.frames_in = after["frames_in"] - before["frames_in"]
        self.sweeps_out = after["sweeps_out"] - before["sweeps_out"]
        old = before["dropped_by_reason"]
        news = {k: n - old.get(k, 0) for k, n in after["dropped_by_reason"].items()}
        self.dropped = {k: n for k, n in news.items() if n}

    @property
    def stamps(self) -> list[int]:
        """Of the clouds."""
        return stamps_of(self.clouds)

    def lost_nothing_but(self, *, hiccups: int = HICCUPS, **reasons: int) -> None:
        """Every picture of the front camera became a cloud with its stamp, except so many, for these reasons.

        Args:
            hiccups: frames that newer ones may have replaced besides.
        """
        assert self.frames_in == len(self.sent["front"]), (self.frames_in, self.sent)
        replaced = self.dropped.pop("replaced", 0)
        assert replaced <= hiccups, replaced
        wanted = {k.replace("__", ":"): n for k, n in reasons.items()}
        assert self.dropped.keys() == wanted.keys(), self.dropped
        assert all(n - replaced <= self.dropped[k] <= n for k, n in wanted.items()), (self.dropped, replaced)
        assert self.frames_in == self.sweeps_out + sum(self.dropped.values()) + replaced
        assert len(set(self.stamps)) == len(self.stamps) == self.sweeps_out


class Road:
    """The node of :mod:`stub_node`, its cameras and one listener on one ROS domain.

    The rear left camera has a process of its own, so that it can die alone.
    """

    def __init__(self, folder: Path, parameters: dict[str, Any] | None = None, **env: str) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from sensor_msgs.msg import PointCloud2

        self.bench = Bench(folder)
        try:
            self._clouds = self.bench.listen("/points", PointCloud2)
            self._diagnostics = self.bench.listen("/diagnostics", DiagnosticArray)
            # A machine that stands still for a moment must not look like a fault: room for its backlog.
            depth = {f"qos_overrides./{c}/image/compressed.subscription.depth": 100 for c in CAMERAS}
            depth["qos_overrides./points.publisher.depth"] = 50
            self.processes = {"front+": self._start_cameras("front", "rear_right")}
            self.processes["rear_left"] = self._start_cameras("rear_left")
            self.node = self.bench.start_node(
                {"diagnostics_period": 0.2, "silent_after": 0.6, **depth, **(parameters or {})}, **env
            )
            self.bench.wait(self._complete, "node, cameras and listener to find each other", self.node)
            self.drive({"ticks": 4})  # the first pictures are slow: memory is mapped, modules are imported
        except BaseException:
            self.bench.close()
            raise

    def __enter__(self) -> "Road":
        return self

    def __exit__(self, *_: object) -> None:
        self.bench.close()

    def _start_cameras(self, *names: str) -> Child:
        return self.bench.start("cameras", [sys.executable, str(HERE / "scripted_cameras.py"), *names])

    def _complete(self) -> bool:
        known = self.bench.statistics(self.node) or {}
        topics = known.get("publishers", {})
        return bool(
            known
            and known["subscribers"].get("points")
            and all(any(topics.get(c, {}).values()) for c in CAMERAS)
            and self.sent() is not None
        )

    def kill(self, name: str) -> None:
        """SIGKILL to a camera process."""
        child = self.processes[name]
        segments = shared_memory_of(child.pid)
        child.signal(signal.SIGKILL)
        child.wait(10.0)
        remove_abandoned(segments)

    def restart(self, name: str) -> None:
        """A camera process that was killed, anew; until its pictures become clouds."""
        self.processes[name] = self._start_cameras(*CAMERAS[1:2] if name == "rear_left" else CAMERAS[::2])
        count = len(self._clouds)
        self.bench.wait(self._complete, f"{name} to be found", self.processes[name])

        def cloud() -> bool:
            self.begin({"ticks": 5})
            self.bench.spin(0.5)
            return len(self._clouds) > count

        self.bench.wait(cloud, f"a cloud with pictures of the new {name}", self.processes[name])

    def begin(self, *acts: dict[str, Any]) -> None:
        """Let the cameras play; returns at once."""
        script = json.dumps({"start_ns": time.time_ns() + 200_000_000, "acts": acts})
        for name in self._names():
            self.bench.set_parameters(name, script=script)

    def _names(self) -> list[str]:
        names = {"front+": "cameras_front_rear_right", "rear_left": "cameras_rear_left"}
        return [names[key] for key, child in self.processes.items() if child.running]

    def sent(self) -> dict[str, list[int]] | None:
        """Stamps per camera, once every camera has been found and has finished; None before."""
        from std_srvs.srv import Trigger

        found: dict[str, list[int]] = {}
        for name in self._names():
            response = self.bench.call(Trigger, f"/{name}/sent", Trigger.Request())
            told = json.loads(response.message) if response else {"idle": False}
            if not told["idle"]:
                return None
            found.update(told["stamps"])
        return found

    def drive(self, *acts: dict[str, Any], calm: int = CALM, then: Any = None) -> Drive:
        """Play these acts and some good pictures, and wait until the node has dealt with all of them.

        Args:
            calm: how many good ones.
            then: called while they play.
        """
        self.bench.wait(lambda: self.sent() is not None, "the cameras to finish what they were at")
        before = self.books()
        self.begin(*acts, {"ticks": calm})
        if then is not None:
            then()
        sent = self.bench.wait(self.sent, "the cameras to finish", self.node, timeout_s=60.0)
        after = self.bench.settled(self.node, before["frames_in"] + len(sent["front"]))
        out, stamps = after["sweeps_out"] - before["sweeps_out"], set(sent["front"])

        def clouds() -> list[Any]:
            return [c for c in self._clouds if stamps_of([c])[0] in stamps]

        self.bench.wait(lambda: len(clouds()) >= out, "every cloud", self.node)
        return Drive(before, after, sent, clouds())

    def statistics(self) -> dict[str, Any]:
        """The node's books as they are."""
        return self.bench.wait(lambda: self.bench.statistics(self.node), "the node to answer", self.node)

    def books(self) -> dict[str, Any]:
        """The node's books once nothing is in flight."""
        return self.bench.settled(self.node, 0)

    def said(self, text: str) -> bool:
        """Whether a diagnostic since the last call of :meth:`forget` contains the text."""
        return any(text in s.message for m in self._diagnostics for s in m.status)

    def forget(self) -> None:
        """Forget the diagnostics so far."""
        self._diagnostics.clear()

    def log(self) -> str:
        return self.node.log.read_text()
