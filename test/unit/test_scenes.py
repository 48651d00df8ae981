# SPDX-License-Identifier: Apache-2.0
"""Scene generator: worlds are reproducible, geometry is exact, LiDAR and cameras agree, sensors behave as described."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.cameras.rig import load_rig  # noqa: E402
from lidargen_ros.sensors import load_sensor  # noqa: E402
from training.scenes import cast, hashing, seeds, world  # noqa: E402
from training.scenes.ego import Ego, advance  # noqa: E402
from training.scenes.render import (  # noqa: E402
    KINDS,
    fit_rig,
    make_worlds,
    render_cameras,
    render_depth,
    render_lidar,
    rig_rays,
    sample_ego,
)  # fmt: skip
from training.scenes.sensors_sim import RANGE_NOISE_M  # noqa: E402

FIRST = seeds.EVALUATION_SEEDS.start


def some(count: int, start: int = FIRST):
    worlds = make_worlds(torch.arange(count) + start)
    return worlds, sample_ego(worlds, worlds.seeds)


def still_ego(x=0.0, y=0.0, z=2.0, **motion):
    zero = torch.zeros(1)
    ego = Ego(torch.tensor([[x, y, z]]), zero, zero, zero, torch.zeros(1, 3), zero)
    return replace(ego, **motion)


def empty_world(**ground):
    """Flat asphalt without anything on it."""
    worlds = make_worlds(torch.tensor([FIRST]))
    prims, flat = worlds.prims.clone(), torch.zeros_like(worlds.ground)
    prims[:, world.CZ] = -1000.0
    flat[:, world.GROUND.index("half_width")] = 1000.0
    for name in ("kx1", "ky1", "kx2", "ky2", "lane_width", "lanes"):
        flat[:, world.GROUND.index(name)] = 1.0
    for name, value in ground.items():
        flat[:, world.GROUND.index(name)] = value
    return replace(worlds, prims=prims, ground=flat)


def put(worlds, slot, centre, half, yaw=0.0, velocity=(0.0, 0.0), material=world.CARGO, colour=0.5):
    prims = worlds.prims.clone()
    values = [*centre, *half, np.cos(yaw), np.sin(yaw), *velocity, material, colour, colour, colour]
    prims[0, : len(values), slot] = torch.tensor(values, dtype=torch.float32)
    return replace(worlds, prims=prims)


def ray(*direction):
    d = torch.tensor(direction, dtype=torch.float32)
    return (d / d.norm()).view(1, 1, 3)


def distance(worlds, direction, ego=None, **kwargs):
    out = render_lidar(worlds, direction, still_ego() if ego is None else ego, noise=False, **kwargs)
    return float(out["range"]), KINDS[int(out["kind"])]


def test_seed_ranges_do_not_meet():
    assert seeds.SAMPLE_DRIVE_SEED not in seeds.EVALUATION_SEEDS
    assert (
        seeds.SAMPLE_DRIVE_SEED
        < seeds.EVALUATION_SEEDS.start
        < seeds.EVALUATION_SEEDS.stop
        <= seeds.TRAINING_SEED_START
    )


def test_a_seed_gives_the_same_world_in_any_batch():
    many, _ = some(8)
    one = make_worlds(torch.tensor([FIRST + 5]))
    for name in ("prims", "ground", "light", "layout"):
        torch.testing.assert_close(getattr(one, name)[0], getattr(many, name)[5])
    assert not torch.equal(many.prims[0], many.prims[1])


def test_worlds_are_finite_and_furnished():
    worlds, ego = some(64)
    assert all(torch.isfinite(a).all() for a in (worlds.prims, worlds.ground, worlds.light, ego.position))
    placed = (worlds.prims[:, world.CZ] > -500).sum(1)
    assert placed.min() > 20 and placed.float().mean() > 80
    assert set(worlds.layout.tolist()) == set(range(len(world.LAYOUTS)))
    mount = ego.position[:, 2] - world.height(worlds.ground, ego.position[:, 0], ego.position[:, 1])
    assert mount.min() > 1.599 and mount.max() < 2.201


def test_layout_can_be_chosen():
    worlds = make_worlds(torch.arange(3) + FIRST, torch.tensor([3, 3, 3]))
    assert worlds.layout.tolist() == [3, 3, 3]
    drawn = make_worlds(torch.arange(3) + FIRST)
    torch.testing.assert_close(make_worlds(drawn.seeds, drawn.layout).prims, drawn.prims)


def test_distance_to_each_kind_of_primitive():
    ahead = ray(1, 0, 0)
    box = put(empty_world(), 0, (12.0, 0.0, 2.0), (2.0, 1.0, 1.0))
    assert distance(box, ahead)[0] == pytest.approx(10.0, abs=1e-4)
    turned = put(empty_world(), 0, (12.0, 0.0, 2.0), (1.0, 1.0, 1.0), yaw=np.pi / 4)
    assert distance(turned, ray(1, 0.001, 0))[0] == pytest.approx(12.0 - 2**0.5, abs=0.02)
    pole = put(empty_world(), world.BOXES, (50.0, 0.0, 2.0), (0.08, 0.08, 3.0), material=world.POST)
    assert distance(pole, ahead)[0] == pytest.approx(49.92, abs=1e-3)
    assert distance(pole, ray(50.0, 0.07, 0))[0] == pytest.approx(50.0, abs=0.05)
    assert distance(pole, ray(50.0, 0.09, 0))[0] == 0.0
    ball = put(
        empty_world(), world.BOXES + world.CYLINDERS, (20.0, 0.0, 2.0), (2.0, 2.0, 1.0), material=world.CROWN
    )
    assert distance(ball, ahead)[0] == pytest.approx(18.0, abs=1e-3)
    lid = put(empty_world(), world.BOXES, (3.0, 0.0, 0.5), (0.5, 0.5, 0.5), material=world.POST)
    assert distance(lid, ray(3.0, 0.0, -1.0))[0] == pytest.approx(10**0.5, abs=1e-3)


def test_ground_and_kerb():
    assert distance(empty_world(), ray(3.0, 0.0, -2.0)) == (pytest.approx(13**0.5, abs=1e-3), "road")
    assert distance(empty_world(slope_x=0.05), ray(1.0, 0.0, 0.0))[0] == pytest.approx(40.0, abs=0.01)
    kerbed = empty_world(half_width=4.0, kerb=0.15, pavement=50.0)
    onto = distance(kerbed, ray(0.0, 8.0, -2.0))  # over the road onto the raised pavement: lower by 1.85 m
    assert onto == (pytest.approx(68**0.5 * 1.85 / 2.0, abs=1e-3), "pavement")
    face = distance(kerbed, ray(0.0, 4.0, -1.93))  # 0.07 m above the road at the kerb line
    assert face == (pytest.approx((16 + 1.93**2) ** 0.5, abs=0.02), "kerb")


def test_nothing_there_is_no_return():
    assert distance(empty_world(), ray(0.0, 0.0, 1.0)) == (0.0, "none")
    far = put(empty_world(), 0, (60.0, 0.0, 2.0), (2.0, 2.0, 2.0))
    assert distance(far, ray(1, 0, 0), max_range=50.0) == (0.0, "none")


def test_camera_depth_equals_lidar_range_on_shared_rays():
    worlds, ego = some(2)
    directions = torch.nn.functional.normalize(
        torch.tensor(load_sensor("pandar128").directions()[::4, ::40]), dim=-1
    )
    ranges = render_lidar(worlds, directions, ego, noise=False, max_range=1e5)["range"]
    depth = render_depth(worlds, torch.zeros(1, 3), directions[None], ego)[:, 0]
    returned = ranges > 0
    assert returned.float().mean() > 0.4
    torch.testing.assert_close(ranges[returned], depth[returned])


def test_lidar_points_project_onto_what_the_cameras_see():
    worlds, ego = some(2)
    sensor = load_sensor("pandar128").with_columns(225)
    rig = fit_rig(load_rig("published"), 88, 160)
    depth = render_depth(worlds, *rig_rays(load_rig("published"), 88, 160), ego).numpy()
    ranges = render_lidar(worlds, torch.tensor(sensor.directions()), ego, noise=False)["range"].numpy()
    for b in range(2):
        points = (ranges[b][..., None] * sensor.directions())[ranges[b] > 3.0]
        for v, view in enumerate(rig):
            pixels, visible = view.project(points)
            u, w = np.rint(pixels[visible]).astype(int).T
            true = np.linalg.norm(points[visible] - view.camera_to_lidar[:3, 3], axis=1)
            # Parallax hides some points, and a coarse pixel may lie beside an edge: most must agree.
            agree = np.abs(depth[b, v, w, u] / true - 1.0) < 0.05
            assert visible.sum() > 500 and agree.mean() > 0.85, (view.name, agree.mean())


def test_motion_within_the_spin_moves_sensor_and_objects():
    times = torch.tensor([0.0, 0.1])
    ahead = ray(1, 0, 0).expand(1, 2, 3)
    wall = put(empty_world(), 0, (20.0, 0.0, 2.0), (1.0, 9.0, 2.0))
    moving = still_ego(velocity=torch.tensor([[10.0, 0.0, 0.0]]))
    seen = render_lidar(wall, ahead, moving, column_times=times, noise=False)["range"][0, 0]
    torch.testing.assert_close(seen, torch.tensor([19.0, 18.0]))
    coming = put(empty_world(), 0, (20.0, 0.0, 2.0), (1.0, 9.0, 2.0), velocity=(-5.0, 0.0))
    seen = render_lidar(coming, ahead, still_ego(), column_times=times, noise=False)["range"][0, 0]
    torch.testing.assert_close(seen, torch.tensor([19.0, 18.5]))
    turning = still_ego(yaw_rate=torch.tensor([1.0]))
    seen = render_lidar(wall, ahead, turning, column_times=times, noise=False)["range"][0, 0]
    torch.testing.assert_close(seen, torch.tensor([19.0, 19.0 / float(np.cos(0.1))]))


def test_traffic_and_ego_follow_the_road():
    worlds, ego = some(32)
    later, there = worlds.at(2.0), advance(worlds, ego, 2.0)
    moved = (worlds.prims[:, world.VX] != 0) & (worlds.prims[:, world.CZ] > -500)
    assert moved.any()
    assert not torch.equal(later.prims[:, world.CX][moved], worlds.prims[:, world.CX][moved])
    speed = torch.linalg.vector_norm(ego.velocity, dim=1)
    travelled = torch.linalg.vector_norm(there.position - ego.position, dim=1)
    torch.testing.assert_close(travelled, 2.0 * speed, rtol=0.02, atol=0.02)
    for a, e in ((worlds, ego), (later, there)):
        mount = e.position[:, 2] - world.height(a.ground, e.position[:, 0], e.position[:, 1])
        assert mount.min() > 1.599 and mount.max() < 2.201
    again = advance(worlds, ego, 0.0)
    torch.testing.assert_close(again.matrix(), ego.matrix(), atol=1e-5, rtol=0)


def test_range_noise_and_materials():
    ahead = torch.nn.functional.normalize(
        torch.tensor([1.0, 0.0, 0.0]) + 0.03 * torch.randn(32, 200, 3), dim=-1
    )
    grey = put(empty_world(), 0, (20.0, 0.0, 2.0), (1.0, 30.0, 30.0), colour=0.5)
    true = render_lidar(grey, ahead, still_ego(), noise=False)["range"]
    seen = render_lidar(grey, ahead, still_ego())
    error = (seen["range"] - true)[seen["range"] > 0]
    assert abs(float(error.mean())) < 0.003 and 0.8 * RANGE_NOISE_M < float(error.std()) < 1.4 * RANGE_NOISE_M
    assert (seen["range"] > 0).float().mean() > 0.98
    assert 0.2 < float(seen["intensity"].max()) <= 1.0 and (seen["intensity"][seen["range"] == 0] == 0).all()
    dark = {"colour": 0.0, "material": world.BODY}
    for at, least, most in ((10.0, 0.9, 1.0), (40.0, 0.0, 0.35)):  # a black car is seen nearby, or head-on
        black = put(empty_world(), 0, (at + 1.0, 0.0, 60.0), (1.0, 30.0, 30.0), **dark)
        black.prims[0, world.A1, 0] = 30.0  # far above its wheels and lamps
        share = float((render_lidar(black, ahead, still_ego(z=60.0))["range"] > 0).float().mean())
        assert least <= share <= most, (at, share)
    other = render_lidar(grey, ahead, still_ego(), seed=1)["range"]
    assert not torch.equal(other, seen["range"])


def test_images_have_light_shadow_and_noise():
    worlds, ego = some(2)
    rays = rig_rays(load_rig("published"), 44, 80)
    images = render_cameras(worlds, *rays, ego)
    assert images.shape == (2, 3, 44, 80, 3) and images.dtype == torch.uint8
    assert (images.float().std(dim=(2, 3, 4)) > 10).all() and (images.float().mean(dim=(2, 3, 4)) > 30).all()
    assert torch.equal(images, render_cameras(worlds, *rays, ego))
    assert not torch.equal(images, render_cameras(worlds, *rays, ego, seed=1))
    clean, flat = (render_cameras(worlds, *rays, ego, noise=False, shadows=s).float() for s in (True, False))
    assert (clean <= flat + 1e-3).all() and (flat - clean).max() > 10


def test_rays_per_scene():
    """Rigs may differ from scene to scene."""
    worlds, ego = some(2)
    origins, directions = rig_rays(load_rig("published"), 12, 20)
    other = torch.stack([origins, origins + 0.2]), torch.stack([directions, directions.flip(2)])
    both = render_depth(worlds, *other, ego)
    torch.testing.assert_close(both[0], render_depth(worlds, origins, directions, ego)[0])
    torch.testing.assert_close(both[1], render_depth(worlds, other[0][1], other[1][1], ego)[1])


def test_times_move_cameras_as_the_lidar():
    worlds, ego = some(2)
    directions = torch.nn.functional.normalize(
        torch.randn(1, 4, 50, 3) * torch.tensor([1.0, 1.0, 0.2]), dim=-1
    )
    depth = render_depth(worlds, torch.zeros(1, 3), directions, ego, times=0.1)[:, 0]
    late = torch.full((50,), 0.1)
    ranges = render_lidar(worlds, directions[0], ego, column_times=late, noise=False, max_range=1e5)["range"]
    hit = ranges > 0
    # Curved traffic and rising ground differ by millimetres between straight motion and motion along the road.
    assert ((ranges - depth)[hit].abs() < 0.02 * ranges[hit]).float().mean() > 0.97


def test_kernel_equals_its_plain_twin():
    """The GPU kernel, run by Triton's interpreter on the CPU; a process of its own, since the mode is set at import."""
    pytest.importorskip("triton")
    code = """
import torch
from training.scenes import cast, cast_kernel
from training.scenes.render import make_worlds, sample_ego
worlds = make_worlds(torch.tensor([100_000]))
ego = sample_ego(worlds, worlds.seeds)
generator = torch.Generator().manual_seed(0)
d = torch.nn.functional.normalize(torch.randn(1, 3, 80, 3, generator=generator) * torch.tensor([1., 1., .2]), dim=-1)
d, o = tuple(d.unbind(-1)), tuple(ego.position[:, i, None, None] for i in range(3))
t = torch.linspace(0, 0.2, 80)[None, None]
a, b = cast.nearest(worlds.prims, o, d, t), cast_kernel.nearest(worlds.prims, o, d, t)
hit = a[0] < cast.FAR
assert hit.float().mean() > 0.2
torch.testing.assert_close(a[0], b[0])
assert torch.equal(a[1][hit], b[1][hit])
assert torch.equal(cast.blocked(worlds.prims, o, d, t), cast_kernel.blocked(worlds.prims, o, d, t))
"""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_compiled_equals_eager():
    """Casting and integer hashing, which a compiler may get wrong; the textures take minutes to compile on a CPU."""
    worlds, ego = some(2)
    rays = rig_rays(load_rig("published"), 12, 20)
    eager, fast = (render_depth(worlds, *rays, ego, compiled=c) for c in (False, True))
    assert ((eager - fast).abs() > 1e-3 * eager).float().mean() < 0.002
    keys = torch.arange(-500, 500, dtype=torch.int32)
    for function in (hashing.hash_normal, hashing.hash_unit, hashing.lattice_unit):
        plain = function(keys[:, None], keys, keys[:7, None, None])
        assert torch.equal(plain, torch.compile(function)(keys[:, None], keys, keys[:7, None, None]))
        assert 0.0 <= float(plain.abs().min()) < float(plain.max()) <= 3.0
        assert float(plain.mean()) == pytest.approx(0.0 if function is hashing.hash_normal else 0.5, abs=0.01)


def test_march_finds_the_first_crest():
    """A hill hides the valley behind it."""
    worlds = empty_world(amp1=3.0, kx1=2 * np.pi / 40.0, ky1=0.0)
    worlds.ground[0, world.GROUND.index("phase1")] = 0.0  # h = 3 sin(2 pi x / 40): crest at x = 10
    origin, direction = (
        tuple(torch.tensor(v).view(1, 1, 1) for v in p) for p in ((0.0, 0.0, 2.0), (1.0, 0.0, 0.0))
    )
    t, _ = cast.ground_hit(worlds.ground, origin, direction)
    expected = 40.0 / (2 * np.pi) * np.arcsin(2.0 / 3.0)
    assert float(t) == pytest.approx(expected, abs=0.02)
