# SPDX-License-Identifier: Apache-2.0
"""Which rig the node uses: parameter, bundle, CameraInfo, TF; and what can hardly be meant."""

import threading
import time
from types import SimpleNamespace as Message

import numpy as np
import pytest
from stub_node import StubGenerator, rig

from lidargen_ros.cameras import PinholeCamera, Rig, View
from lidargen_ros.errors import CalibrationError, ConfigError
from lidargen_ros.ros.calibration import LiveCalibration, chosen_rig, doubts
from lidargen_ros.ros.calibrator import Calibrator
from lidargen_ros.ros.parameters import Settings
from lidargen_ros.ros.reporter import Reporter
from lidargen_ros.ros.statistics import Statistics

CAMERAS = ("front", "rear_left", "rear_right")


def info(focal: float = 305.0, frame: str = "optical", sec: int = 1):
    stamp = Message(sec=sec, nanosec=0)
    return Message(
        header=Message(stamp=stamp, frame_id=frame),
        width=640,
        height=352,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=[focal, 0, 319.5, 0, focal, 175.5, 0, 0, 1],
        p=[0.0] * 12,
        binning_x=0,
        binning_y=0,
        roi=Message(x_offset=0, y_offset=0, width=0, height=0),
    )


class Poses:
    """TF whose frames are put in one by one."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], np.ndarray] = {}

    def look_up(self, target: str, source: str) -> np.ndarray:
        if (target, source) not in self.known:
            raise CalibrationError(f"TF has no transform from {source} to {target}")
        return self.known[target, source]


def test_intrinsics_come_once_every_camera_is_known_and_again_when_they_change() -> None:
    live = LiveCalibration(rig(), Settings())
    found = [live.update(c, f"/{c}/camera_info", info(), "lidar") for c in CAMERAS]
    assert found[:2] == [None, None]
    assert [v.camera.fx for v in found[2].views] == [305.0] * 3
    np.testing.assert_array_equal(found[2].views[1].camera_to_lidar, rig().views[1].camera_to_lidar)
    assert live.update("front", "/front/camera_info", info(sec=5), "lidar") is None
    assert live.stamps_ns["front"] == 5 * 10**9
    assert live.update("front", "/front/camera_info", info(310.0), "lidar").views[0].camera.fx == 310.0
    with pytest.raises(CalibrationError, match="/front/camera_info"):
        live.update("front", "/front/camera_info", info(float("nan")), "lidar")
    assert live.missing == []


def test_poses_of_tf_are_named_while_missing_and_followed_when_they_move() -> None:
    poses = Poses()
    live = LiveCalibration(rig(), Settings(), poses)
    for camera in CAMERAS:
        assert live.update(camera, camera, info(frame=f"{camera}_optical"), "lidar") is None
    assert len(live.missing) == 3
    for i, camera in enumerate(CAMERAS):
        poses.known["lidar", f"{camera}_optical"] = np.eye(4) + np.eye(4, k=3) * i
    assert live.look_up("lidar").source == "CameraInfo and TF"
    assert live.look_up("lidar") is None
    poses.known["lidar", "front_optical"] = np.eye(4) + np.eye(4, k=3) * 1e-6  # noise of a repeated broadcast
    assert live.look_up("lidar") is None
    poses.known["lidar", "front_optical"] = np.eye(4) + np.eye(4, k=3) * 0.5
    assert live.look_up("lidar").views[0].camera_to_lidar[0, 3] == 0.5
    poses.known.clear()
    assert live.look_up("lidar") is None  # the last poses stay
    assert live.missing == []


def test_what_can_hardly_be_meant_is_named() -> None:
    assert doubts(rig()) == []
    pose = np.eye(4)
    far = np.eye(4)
    far[0, 3] = 1500.0  # millimetres
    views = (
        View("a", PinholeCamera(640, 352, 300, 300, 900, 175), pose),
        View("b", PinholeCamera(640, 352, 300, 300, 320, 175), pose),
        View("c", PinholeCamera(640, 352, 300, 300, 320, 175), far),
    )
    assert doubts(Rig(views)) == [
        "a: principal point (900, 175) lies outside of the 640 x 352 image",
        "b: the same pose as a",
        "c: 1500 m from the LiDAR; poses are in metres",
    ]


class Log:
    def warning(self, text: str) -> None:
        self.last = text

    error = warning


@pytest.fixture
def log() -> Log:
    return Log()


def calibrator(
    log: Log, settings: Settings, generator: StubGenerator, poses: Poses | None = None
) -> Calibrator:
    return Calibrator(generator, settings, Statistics(CAMERAS), Reporter(log), lambda: None, poses)


def test_an_emptied_parameter_takes_the_bundle_s_rig_again(log, tmp_path) -> None:
    moved = tmp_path / "moved.yaml"
    rig().save(moved)
    moved.write_text(moved.read_text().replace("300.0", "310.0"))
    generator = StubGenerator("stub")
    made = calibrator(log, Settings(rig=str(moved)), generator)
    assert generator.rig.views[0].camera.fx == 310.0
    made.choose(Settings())
    assert generator.rig == rig()
    with pytest.raises(ConfigError, match="cannot be read"):
        made.check(Settings(rig="/nowhere.yaml"))


def test_a_new_rig_keeps_what_camera_info_says(log, tmp_path) -> None:
    generator = StubGenerator("stub")
    made = calibrator(log, Settings(calibration="camera_info"), generator)
    assert not made.ready
    for camera in CAMERAS:
        made.on_info(camera, f"/{camera}/camera_info", info(), Settings())
    assert made.ready
    moved = tmp_path / "moved.yaml"
    lifted = rig().to_dict()
    for view in lifted["views"]:
        view["camera_to_lidar"][2][3] = 0.4
    Rig.from_dict(lifted).save(moved)
    made.choose(Settings(rig=str(moved)))
    front = generator.rig.views[0]
    assert (front.camera.fx, front.camera_to_lidar[2, 3]) == (305.0, 0.4)
    made.on_info("front", "/front/camera_info", info(float("nan")), Settings())
    assert "/front/camera_info" in log.last
    assert made.state().sizes["front"] == (640, 352)


def test_a_rig_that_cannot_be_built_leaves_the_last_one(log, monkeypatch) -> None:
    generator = StubGenerator("stub")
    made = calibrator(log, Settings(calibration="camera_info"), generator)
    made.start()

    def refuse(rig: Rig) -> None:
        raise MemoryError("no memory for ray maps")

    monkeypatch.setattr(generator, "set_rig", refuse)
    for camera in CAMERAS:
        made.on_info(camera, camera, info(), Settings())
    assert made.stop()
    assert "no memory for ray maps; the last calibration stays" in log.last
    assert generator.rig == rig()
    assert not made.ready


def test_frames_go_on_while_the_ray_maps_of_a_real_bundle_are_rebuilt(log) -> None:
    from lidargen_ros import LidarGenerator
    from lidargen_ros.ros.matcher import Frame, FrameSet, Matcher
    from lidargen_ros.ros.pipeline import Pipeline

    generator, books = LidarGenerator.from_bundle("constant", threads=1), Statistics(CAMERAS)
    rigs_of_sweeps: list[str] = []
    sink = Message(wanted=lambda: True, publish=lambda job: rigs_of_sweeps.append(job.rig.name))
    reporter = Reporter(log)
    pipeline = Pipeline(generator, sink, books, reporter, lambda: 0)
    done, original = threading.Event(), generator.rig
    made = Calibrator(generator, Settings(), books, reporter, done.set)
    picture = Message(
        message=Message(
            header=Message(stamp=None), encoding="rgb8", width=64, height=36, step=192, data=bytes(36 * 192)
        ),
        transport="raw",
        topic="image",
        received=0.0,
    )
    frames = FrameSet((Frame(0, picture),) * 3, 0, 0)
    pipeline.start()
    made.start()

    def one_frame() -> None:
        before = len(rigs_of_sweeps)
        pipeline.submit(frames, Settings())
        deadline = time.monotonic() + 20
        while len(rigs_of_sweeps) == before:
            assert time.monotonic() < deadline, log.last
            time.sleep(0.001)

    one_frame()
    made._take(Rig(original.views, "moved"))
    meanwhile = 0
    while not done.is_set():
        one_frame()
        meanwhile += 1
    one_frame()
    assert (made.stop(), pipeline.stop()) == (True, "")
    pipeline.close()
    generator.close()
    assert meanwhile >= 2  # a rebuild takes some tenths of a second, a frame some hundredths
    assert rigs_of_sweeps[: meanwhile - 1] == [original.name] * (meanwhile - 1)
    assert rigs_of_sweeps[-1] == "moved"
    assert books.snapshot(Matcher(CAMERAS))["dropped"] == 0


def test_views_are_found_by_name() -> None:
    names = ("rear_right", "front", "rear_left")
    assert [v.name for v in chosen_rig(rig(), Settings(cameras=names)).views] == list(names)
