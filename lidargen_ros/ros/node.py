# SPDX-License-Identifier: Apache-2.0
"""The node ``lidargen``: three cameras in, a LiDAR out. Topics, parameters and diagnostics are in docs/node.md."""

import json
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import Trigger

from ..errors import ConfigError, LidargenError
from . import compat
from .calibrator import Calibrator
from .diagnostics import Diagnostics
from .gauges import Gauges, freed
from .health import Health, Observed
from .inputs import CameraInputs
from .lifecycle import reported, start
from .logs import LogBridge
from .matcher import Frame, FrameSet
from .outputs import Outputs
from .parameters import PARAMETERS, declare
from .pipeline import Generator, Pipeline
from .reporter import Reporter
from .statistics import Statistics
from .status import Status
from .synchronizer import make_matcher, tune
from .transforms import Transforms

MakeGenerator = Callable[..., Generator]
_TICK_S = 1.0  # how often transports are chosen and TF is read


def load_generator(bundle: str, **options: Any) -> Generator:
    """The generator of a bundle; imported here so that `--help` and tests stay light."""
    from ..generator import LidarGenerator

    return LidarGenerator.from_bundle(bundle, **options)


class LidarNode(LifecycleNode):
    """Configure loads and warms up the model, activate subscribes and works, deactivate stops, cleanup frees.

    Args:
        make_generator: makes the generator from bundle, engine and threads.

    Raises:
        ConfigError: a parameter has a wrong type or value.
    """

    def __init__(self, make_generator: MakeGenerator = load_generator, **options: Any) -> None:
        super().__init__("lidargen", **options)
        self._make_generator = make_generator
        self.settings = declare(self)
        compat.add_parameter_callbacks(self, self._validate, self._apply)
        self.given_up = ""
        """Why the engine is no longer tried; empty while it is."""
        self.reporter = Reporter(self.get_logger())
        self.health = Health()
        self.statistics = Statistics(self.settings.cameras)
        self.matcher = make_matcher(self.settings)
        self.gauges = Gauges()
        self._log_bridge = LogBridge(self.get_logger(), self.health.heard)
        self._generator: Generator | None = None
        self._outputs: Outputs | None = None
        self._pipeline: Pipeline | None = None
        self._inputs: CameraInputs | None = None
        self._calibrator: Calibrator | None = None
        self._transforms: Transforms | None = None
        self._jump_handle: Any = None
        self._timer: Any = None
        self._metadata_lock = threading.Lock()
        self.create_service(Trigger, "~/statistics", self._on_statistics)
        self._diagnostics = Diagnostics(self, self.settings.diagnostics_period, self._statuses, self.reporter)

    # --- transitions ---------------------------------------------------------------------------------------------

    @reported("loading the model", "inactive", undo="_free")
    def on_configure(self, state: Any) -> None:
        """Load, check and warm up the bundle; create the publishers."""
        s, self.given_up = self.settings, ""
        if s.calibration == "tf" and self._transforms is None:
            self._transforms = Transforms(self)
        generator = self._generator = self._make_generator(
            s.bundle, engine=s.engine, threads=s.threads or None
        )
        self._calibrator = Calibrator(
            generator, s, self.statistics, self.reporter, self._on_calibration, self._transforms
        )
        black = [np.zeros((v.camera.height, v.camera.width, 3), np.uint8) for v in generator.rig.views]
        generator(black, steps=s.steps or None)
        self._outputs = Outputs(self, s, self.statistics, self.reporter)
        self._pipeline = Pipeline(
            generator,
            self._outputs,
            self.statistics,
            self.reporter,
            lambda: self.get_clock().now().nanoseconds,
            compat.cv_bridge_converter(),
        )
        self._publish_metadata()
        model = generator.describe()
        self.get_logger().info(f"model {model.get('model')} on {model.get('engine')}, {model.get('machine')}")
        super().on_configure(state)

    @reported("activating", "active", undo="_stop_working")
    def on_activate(self, state: Any) -> None:
        """Subscribe and start working."""
        super().on_activate(state)
        assert self._pipeline is not None and self._calibrator is not None
        self.statistics.activated()
        self._pipeline.start()
        self._calibrator.start()
        on_info = self._on_info if self._calibrator.listens else None
        self._inputs = CameraInputs(self, self.settings, self._on_frame, on_info)
        # By the wall: a bag that is paused, or has ended, stops the node's own clock.
        self._timer = self.create_timer(_TICK_S, self._on_tick, clock=Clock(clock_type=ClockType.STEADY_TIME))
        backwards = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1_000_000))
        self._jump_handle = self.get_clock().create_jump_callback(
            backwards, post_callback=self._on_clock_jump
        )
        for warning in compat.transport_warnings():
            self.get_logger().warning(warning)

    @reported("deactivating", "inactive")
    def on_deactivate(self, state: Any) -> None:
        """Stop within the frame at hand, which is still published."""
        self._stop_working()
        super().on_deactivate(state)
        if self.given_up:
            raise RuntimeError(self.given_up)  # to the error state: on_error frees, and keeps this reason

    @reported("cleaning up", "unconfigured")
    def on_cleanup(self, state: Any) -> None:
        """Free the model, and say how much memory that gave back."""
        before = self.gauges.read()
        self._free()
        super().on_cleanup(state)
        self.get_logger().info(f"the model is freed: {freed(before, self.gauges.settle())}")

    @reported("shutting down", "finalized", keep_trouble=True)
    def on_shutdown(self, state: Any) -> None:
        """Stop and free, from any state."""
        self._stop_working()
        self._free()
        super().on_shutdown(state)

    @reported("handling an error", "unconfigured", keep_trouble=True)
    def on_error(self, state: Any) -> None:
        """After an exception in a transition: give everything back, keep the reason."""
        self._stop_working()
        self._free()

    def _stop_working(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
        if self._timer is not None:
            self.destroy_timer(self._timer)
        if self._jump_handle is not None:
            self._jump_handle.unregister()
        self.matcher.reset("deactivated")
        hung = [self._pipeline.stop()] if self._pipeline is not None else []
        if self._calibrator is not None and not self._calibrator.stop():
            hung.append("calibrate")
        for stage in filter(None, hung):
            self.get_logger().error(f"{stage} did not end within 10 s; it is left behind")
        self._inputs = self._timer = self._jump_handle = None

    def _free(self) -> None:
        parts = (self._pipeline, self._outputs, self._generator)
        # First out of the diagnostics' sight, which look from another thread.
        self._pipeline = self._outputs = self._calibrator = self._generator = None
        for part in parts:
            if part is not None:
                part.close()

    # --- data ------------------------------------------------------------------------------------------------------

    def _on_frame(self, camera: str, frame: Frame) -> None:
        known, picture = self.statistics.cameras[camera], frame.payload
        known.rate.tick()
        known.transport, known.stamp_ns = picture.transport, frame.stamp_ns
        if frame.stamp_ns == 0:
            self.reporter.warning(
                f"{picture.topic} stamp", f"{picture.topic}: images are stamped 0; the driver must stamp them"
            )
        jumps = self.matcher.counters.jumps
        sets = self.matcher.add(camera, frame)
        if self.matcher.counters.jumps != jumps:
            self.reporter.warning(
                "time", f"{picture.topic}: stamps went backwards (a bag that loops?); matching starts anew"
            )
        for found in sets:
            self._submit(found)

    def _submit(self, found: FrameSet) -> None:
        if self._pipeline is None or self._calibrator is None:
            self.statistics.drop("deactivated")
        elif not self._calibrator.ready:
            missing = "; ".join(self._calibrator.missing) or "the first ray maps are being made"
            self.reporter.warning(
                "calibration", f"images are dropped until there is a calibration: {missing}"
            )
            self.statistics.drop("no_calibration")
        else:
            self._pipeline.submit(found, self.settings)

    def _on_info(self, camera: str, topic: str, info: Any) -> None:
        if self._calibrator is not None:
            self._calibrator.on_info(camera, topic, info, self.settings)

    def _on_calibration(self) -> None:
        """The generator has another rig; called on the calibrator's thread."""
        self._publish_metadata()
        self.get_logger().info("ray maps follow a new calibration")

    def _on_tick(self) -> None:
        if self._inputs is not None:
            self._inputs.choose_transports()
        if self._calibrator is not None:
            self._calibrator.look_up(self.settings)
        limit, pipeline = self.settings.give_up_after, self._pipeline
        if limit and pipeline is not None and pipeline.failed_in_row >= limit:
            count, last = pipeline.failed_in_row, pipeline.last_failure
            self.given_up = f"{count} frames in a row failed on the engine, the last with: {last}"
            self.trigger_deactivate()
        topic = self.resolve_topic_name("points")
        if self.count_publishers(topic) > 1:
            self.reporter.warning(
                "rival",
                f"{topic}: another node publishes there as well, or was killed seconds ago; stop one, or give it a "
                "namespace of its own",
            )

    def _on_clock_jump(self, _: Any) -> None:
        self.matcher.jump_back(self.get_clock().now().nanoseconds)
        self.reporter.warning("time", "the clock went backwards (a bag that loops?); matching starts anew")

    def _publish_metadata(self) -> None:
        # Executor and calibrator both come here; one at a time, so that the last message is the newest.
        with self._metadata_lock:
            if self._generator is None or self._outputs is None:
                return
            model = self._generator.describe()
            self.health.identity = model
            self._diagnostics.hardware_id = str(model.get("model", ""))
            self._outputs.publish_metadata(self._generator.sensor, self._generator.rig, model, self.settings)

    # --- parameters, services, diagnostics -------------------------------------------------------------------------

    def _validate(self, parameters: Sequence[Any]) -> SetParametersResult:
        values = {p.name: p.value for p in parameters if p.name in PARAMETERS}
        try:
            new = self.settings.changed(values)
            if "steps" in values and self._generator is not None:
                self._generator.check_steps(new.steps or None)
            if "rig" in values and self._calibrator is not None:
                self._calibrator.check(new)
        except LidargenError as e:
            return SetParametersResult(successful=False, reason=str(e))
        return SetParametersResult(successful=True)

    def _apply(self, parameters: Sequence[Any]) -> None:
        values = {p.name: p.value for p in parameters if p.name in PARAMETERS}
        if not values:
            return
        self.settings = self.settings.changed(values)
        tune(self.matcher, self.settings)
        if "rig" in values and self._calibrator is not None:
            self._calibrator.choose(self.settings)
        self._publish_metadata()

    def _offsets_ms(self) -> dict[str, float | None]:
        gaps = dict(self.matcher.offset_ns)
        return {c: None if gap is None else round(gap / 1e6, 3) for c, gap in gaps.items()}

    def _camera_publishers(self) -> dict[str, dict[str, int]]:
        inputs = self._inputs
        return inputs.publishers() if inputs is not None else {}

    def _statuses(self) -> list[Status]:
        pipeline, calibrator = self._pipeline, self._calibrator
        seen = Observed(
            offsets_ms=self._offsets_ms(),
            publishers=self._camera_publishers(),
            notes=self.reporter.recent(),
            calibration=calibrator.state() if calibrator else None,
            stalled=pipeline.stalled() if pipeline else ("", 0.0),
            wanted=pipeline.wanted if pipeline else False,
            readings=self.gauges.read(),
            unreadable=self.gauges.unreadable,
        )
        return self.health.statuses(self.statistics.snapshot(self.matcher), self.settings, seen)

    def _on_statistics(self, _: Any, response: Any) -> Any:
        content = {
            "state": self.health.state,
            "trouble": self.health.trouble,
            **self.statistics.snapshot(self.matcher),
            "offsets_ms": self._offsets_ms(),
            "publishers": self._camera_publishers(),
            "subscribers": self._outputs.subscribers() if self._outputs else {},
            "model": self.health.identity,
            "machine": self.gauges.read(),
        }
        response.success, response.message = True, json.dumps(content)
        return response

    def close(self) -> None:
        """Shut down in order, from whatever state; then the node cannot be used any more."""
        if self.health.state != "finalized":
            self.trigger_shutdown()
        self._diagnostics.stop()
        self._log_bridge.close()
        books = self.statistics.snapshot(self.matcher)
        reasons = ", ".join(f"{k} {v}" for k, v in books["dropped_by_reason"].items()) or "none"
        self.get_logger().info(
            f"{books['frames_in']} frames in, {books['sweeps_out']} sweeps out, {books['dropped']} dropped ({reasons})"
        )
        self.destroy_node()


def main(args: list[str] | None = None, make_generator: MakeGenerator = load_generator) -> int:
    """Run the node until SIGINT or SIGTERM. Exit status 0, or 1 if it could not start."""
    # Signals are handled here: rclpy's handler would take the context away from under the frame at hand.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        node = LidarNode(make_generator)
    except ConfigError as e:
        print(f"lidargen: {e}", file=sys.stderr)
        rclpy.shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if node.settings.autostart and not start(node):
            return 1
        while not stop.is_set() and rclpy.ok():
            executor.spin_once(timeout_sec=0.2)
            if node.given_up and node.settings.autostart:
                return 1
        return 0
    finally:
        node.close()
        executor.shutdown()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
