# SPDX-License-Identifier: Apache-2.0
"""Tracks, transform chains, lenses, recut turns and the alignment score, each against what is known exactly."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from toy_world import ToyWorld

from lidargen_ros.bags.transforms import FrameTree, add_tf, pose_matrix
from lidargen_ros.cameras.fisheye import FisheyeCamera
from lidargen_ros.cameras.ftheta import FThetaCamera
from lidargen_ros.cameras.pinhole import PinholeCamera
from lidargen_ros.cameras.rig import View
from lidargen_ros.errors import CalibrationError, DataError, InputError
from lidargen_ros.motion import compensate, invert_pose, spin_motion
from lidargen_ros.sensors import Sensor
from training.data.alignment import Alignment, edge_points
from training.data.drive import Spin, Track, to_ray_time
from training.data.ftheta_fit import lens_for
from training.data.recut import Recut, turn_share

WORLD = ToyWorld()


def lidar_pose(t):
    return WORLD.body(t) @ WORLD.lidar_in_body


def test_track_between_and_beyond_its_poses():
    times = np.arange(0, 1_000_001, 20_000)
    track = Track(times, [lidar_pose(t * 1e-6) for t in times])
    wanted = np.array([0, 13_000, 555_555, 1_000_000, 1_100_000, -100_000])
    poses = track.at(wanted)
    for t, pose in zip(wanted, poses, strict=True):
        np.testing.assert_allclose(pose, lidar_pose(t * 1e-6), atol=2e-3)
    assert track.covers(1_149_000)
    assert not track.covers(1_151_000)
    with pytest.raises(InputError):
        track.at([1_200_000])
    assert track.largest_gap_us(100_000, 200_000) == 20_000


def test_track_of_one_long_gap():
    track = Track([0, 100_000, 900_000], np.tile(np.eye(4), (3, 1, 1)))
    assert track.largest_gap_us(150_000, 250_000) == 800_000
    assert track.largest_gap_us(10_000, 90_000) == 100_000


@pytest.mark.parametrize(("times", "words"), [([0], "two or more"), ([0, 0], "rising"), ([5, 1], "rising")])
def test_tracks_that_are_none(times, words):
    with pytest.raises(DataError, match=words):
        Track(times, np.tile(np.eye(4), (len(times), 1, 1)))


def test_track_with_nan():
    with pytest.raises(DataError, match="NaN"):
        Track([0, 1], np.full((2, 4, 4), np.nan))


@settings(max_examples=50, deadline=None)
@given(
    turn=st.tuples(*[st.floats(-0.2, 0.2)] * 3),
    travel=st.tuples(*[st.floats(-3, 3)] * 3),
    at=st.sampled_from(["start", "end", "middle"]),
)
def test_deskewing_is_undone_whatever_pose_it_aims_at(turn, travel, at):
    rng = np.random.default_rng(0)
    measured, tau = rng.uniform(-40, 40, (50, 3)), rng.random(50)
    start, end = lidar_pose(3.0), np.eye(4)
    end[:3, :3], end[:3, 3] = Rotation.from_rotvec(turn).as_matrix(), travel
    end = start @ end
    at_start = compensate(measured, tau, spin_motion(start, end))
    reference = {"start": start, "end": end, "middle": lidar_pose(3.05)}[at]
    given_points = at_start @ spin_motion(reference, start)[:3, :3].T + spin_motion(reference, start)[:3, 3]
    found = to_ray_time(given_points, tau, start, end, reference)
    np.testing.assert_allclose(found, measured, atol=2e-5)


def tf(parent, child, pose, t=0.0):
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    stamp = SimpleNamespace(sec=int(t), nanosec=round((t - int(t)) * 1e9))
    names = SimpleNamespace
    return names(
        header=names(frame_id=parent, stamp=stamp),
        child_frame_id=child,
        transform=names(
            translation=names(x=pose[0, 3], y=pose[1, 3], z=pose[2, 3]), rotation=names(x=x, y=y, z=z, w=w)
        ),
    )


def test_chains_up_and_down():
    tree = FrameTree()
    camera = WORLD.camera_in_body(1)
    add_tf(tree, [tf("/base_link", "lidar", WORLD.lidar_in_body), tf("base_link", "mast", np.eye(4))], True)
    add_tf(tree, [tf("mast", "camera", camera)], True)
    expected = invert_pose(WORLD.lidar_in_body) @ camera
    np.testing.assert_allclose(tree.fixed("camera", "/lidar"), expected, atol=1e-12)
    np.testing.assert_allclose(tree.fixed("lidar", "camera"), invert_pose(expected), atol=1e-12)
    with pytest.raises(CalibrationError, match=r"known frames: base_link, camera, lidar, mast"):
        tree.fixed("camera", "other")


def test_moving_chains_with_a_slow_correction():
    """map -> odom comes rarely, odom -> base_link often; their product is what counts."""
    tree = FrameTree()
    add_tf(tree, [tf("base_link", "lidar", WORLD.lidar_in_body)], True)
    shift = np.eye(4)
    shift[0, 3] = 5.0
    for t in (0.0, 1.0):
        add_tf(tree, [tf("map", "odom", shift, t)], False)
    for t in np.arange(0, 1.01, 0.05):
        add_tf(tree, [tf("odom", "base_link", WORLD.body(t), t)], False)
    times, poses = tree.track("lidar", "map")
    assert len(times) == 21
    for t, pose in zip(times, poses, strict=True):
        np.testing.assert_allclose(pose, shift @ lidar_pose(t * 1e-9), atol=1e-6)
    with pytest.raises(CalibrationError, match="moving transform"):
        tree.fixed("lidar", "odom")


def test_fixed_transforms_repeated_on_tf():
    tree = FrameTree()
    for t in range(5):
        add_tf(tree, [tf("base_link", "lidar", WORLD.lidar_in_body, t)], False)
    np.testing.assert_allclose(tree.fixed("lidar", "base_link"), WORLD.lidar_in_body, atol=1e-9)


@pytest.mark.parametrize("q", [(0, 0, 0, 0), (np.nan, 0, 0, 1), (1, 1, 1, 1)])
def test_rotations_that_are_none(q):
    rotation = SimpleNamespace(**dict(zip("xyzw", q, strict=True)))
    with pytest.raises(DataError, match="is no pose"):
        pose_matrix(SimpleNamespace(x=0, y=0, z=0), rotation, "tf")


CAMERAS = {
    "narrow": PinholeCamera(640, 360, 500, 500, 320, 180),
    "unequal": PinholeCamera(640, 360, 500, 506, 320, 180),
    "distorted": PinholeCamera(640, 360, 400, 400, 310, 185, (-0.1, 0.02, 0.001, -0.001, 0.0)),
    "wide": PinholeCamera(640, 360, 200, 200, 320, 180),
    "fisheye": FisheyeCamera(640, 480, 200, 200, 320, 240, (0.01, -0.01, 0.001, 0.0)),
    "odd": PinholeCamera(641, 361, 500, 500, 320, 180),
}


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize("max_width", [0, 320])
def test_any_camera_as_ftheta(name, max_width):
    """A picture of smooth colours, seen by both cameras: equal where both look."""
    camera = CAMERAS[name]
    lens = lens_for(camera, max_width)
    assert lens.target.width % 2 == lens.target.height % 2 == 0
    assert lens.target.width <= (max_width or camera.width)
    assert FThetaCamera.from_vector(lens.vector) == lens.target

    def seen(c):
        v, u = np.mgrid[: c.height, : c.width]
        rays = c.rays(np.stack([u, v], axis=-1))
        return ((rays + 1) * 100).astype(np.uint8)

    found, expected = lens.picture(seen(camera)).astype(int), seen(lens.target).astype(int)
    middle = np.s_[20:-20, 20:-20]
    lit = found[middle].sum(axis=-1) > 0
    assert lit.mean() > 0.9
    assert np.quantile(np.abs(found - expected)[middle][lit], 0.99) <= 2
    assert lens.resampled == (lens.error_px > 0.25)
    if not max_width:
        assert lens.resampled == (name in ("unequal", "wide", "distorted"))


def test_pictures_of_another_size_are_refused():
    with pytest.raises(CalibrationError, match="is the CameraInfo of this topic"):
        lens_for(CAMERAS["narrow"]).picture(np.zeros((10, 10, 3), np.uint8))


@pytest.mark.parametrize("cut", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("clockwise", [True, False])
def test_turns_are_joined_at_the_cut(cut, clockwise):
    """Points numbered by time: each joined turn holds one whole turn, in time, none lost but at the ends."""
    sensor = Sensor("s", [0.0], 100, clockwise=clockwise)
    recut = Recut(sensor)
    sign, made = (-1 if clockwise else 1), []
    for k in range(4):
        share = (cut + (np.arange(100) + 0.5) / 100) % 1.0
        azimuth = np.pi + sign * 2 * np.pi * share
        points = np.stack([10 * np.cos(azimuth), 10 * np.sin(azimuth), np.zeros(100)], axis=-1)
        np.testing.assert_allclose(turn_share(points, sensor), share, atol=1e-9)
        times = k * 100_000 + np.arange(100) * 1000.0
        spin = recut.add(Spin(k * 100_000, (k + 1) * 100_000, points, times, np.zeros(100, int)), cut)
        if spin is not None:
            made.append(spin)
    assert len(made) == 3
    assert recut.dropped == {"half turn before the first whole one": 1}
    for k, spin in enumerate(made):
        assert spin.start_us == pytest.approx((k + 1 - cut) * 100_000, abs=1)
        assert spin.end_us - spin.start_us == pytest.approx(100_000, abs=1)
        assert len(spin.points) == 100
        assert (np.diff(spin.intensity) > 0).all()
        assert spin.intensity[0] >= spin.start_us - 1
        assert spin.intensity[-1] < spin.end_us


def test_turns_with_a_cloud_missing_are_not_joined():
    sensor = Sensor("s", [0.0], 100)
    recut = Recut(sensor)
    points = np.array([[1.0, 0, 0]])
    assert recut.add(Spin(0, 100_000, points), 0.5) is None
    assert recut.add(Spin(200_000, 300_000, points), 0.5) is None
    assert recut.dropped["turn cut by a missing cloud"] == 1
    kept = Spin(0, 100_000, points)
    assert recut.add(kept, 0.001) is kept


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (1.5, 0.0), (-1.5, 0.0), (0.0, 1.5)])
def test_a_turned_camera_is_noticed(yaw, pitch):
    """The calibration is wrong by a known turn; the score finds the turn back."""
    world = ToyWorld(
        sensor=Sensor("fine", np.linspace(10, -20, 64), 900, spin_time_s=0.1),
        width=320,
        height=192,
        focal=180.0,
    )
    score = Alignment.empty()
    true = invert_pose(world.lidar_in_body) @ world.camera_in_body(0)
    wrong = np.eye(4)
    wrong[:3, :3] = Rotation.from_euler("yx", (yaw, pitch), degrees=True).as_matrix()
    # Points land where the wrong calibration says; turning them back by the same angle makes it right.
    view = View("front", world.camera(), true @ wrong)
    for start in (0.0, 0.4):
        motion = invert_pose(
            spin_motion(
                world.body(start) @ world.lidar_in_body, world.body(start + 0.1) @ world.lidar_in_body
            )
        )
        score.add(world.picture(0, start), view, edge_points(world.spin(start), world.sensor, motion))
    assert score.edges > 150
    assert abs(score.best_deg[0] - yaw) <= 0.5
    assert abs(score.best_deg[1] - pitch) <= 0.5
    assert score.verdict()[0] == ("ok" if yaw == pitch == 0 else "doubtful")


def test_too_few_outlines_tell_nothing():
    assert Alignment.empty().verdict() == ("unknown", "only 0 outlines in view")
