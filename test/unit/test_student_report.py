# SPDX-License-Identifier: Apache-2.0
"""Figures of a bundle on held-out scenes: the same as training's own, and each measures what it says."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.cameras.align import DEFAULT_HYPOTHESES, align, atlas  # noqa: E402
from lidargen_ros.cameras.rig import load_rig  # noqa: E402
from lidargen_ros.carry import carry  # noqa: E402
from lidargen_ros.errors import ConfigError  # noqa: E402
from lidargen_ros.generator import LidarGenerator, Maps  # noqa: E402
from lidargen_ros.metrics.ladder import ConstantMap  # noqa: E402
from lidargen_ros.metrics.temporal import flicker  # noqa: E402
from lidargen_ros.models.student import Student, StudentConfig  # noqa: E402
from lidargen_ros.models.student_graphs import DecoderGraph, DenoiserGraph, EncoderGraph  # noqa: E402
from lidargen_ros.sensors import Sensor, load_sensor  # noqa: E402
from lidargen_ros.sweep import Sweep  # noqa: E402
from training.student import bundle_report as measure  # noqa: E402
from training.student.evaluate import RaySums, evaluate, student_predictor  # noqa: E402
from training.student.held_out import (  # noqa: E402
    SEEDS,
    STILL_SEEDS,
    SceneMaker,
    other_rigs,
    other_sensors,
)
from training.student.rigs import build_bank  # noqa: E402
from training.student.stream import SceneStream  # noqa: E402

TILE = (44, 80)
SENSOR = Sensor("toy", np.linspace(12, -24, 16), 72)
RIG = load_rig("published")
TOY = StudentConfig(full=8, fine=8, patch=16, mid=16, coarse=16, head_width=8, previous=True)


class StandIn:
    """What the report asks of a generator, around any function of the images."""

    lidar_height, return_threshold = 1.9, 0.5
    hypotheses = DEFAULT_HYPOTHESES
    tile = TILE
    bundle = SimpleNamespace(name="stand-in")

    def __init__(self, sensor=SENSOR):
        self.sensor = sensor
        self.set_rig(RIG)

    def set_rig(self, rig):
        self.rig = rig
        self.aligned = align(
            rig, self.sensor, tile=TILE, hypotheses=self.hypotheses, lidar_height=self.lidar_height
        )

    def with_sensor(self, sensor):
        return type(self)(sensor)

    @property
    def seen(self):
        return self.aligned.seen

    def describe(self):
        return {"model": "stand-in"}

    def __call__(self, images, **options):
        maps = self.maps(images, **options)
        return Sweep(np.where(maps.probability >= 0.5, maps.range_m, 0), self.sensor)


class TorchStandIn(StandIn):
    """An untrained student, its graphs run in torch as engines run them."""

    reads_previous = True

    def __init__(self, sensor=SENSOR):
        super().__init__(sensor)
        torch.manual_seed(0)
        self.student = Student(TOY).eval()

    @torch.no_grad()
    def maps(self, images, steps=1, seed=0, previous=None, motion=None):
        a = self.aligned
        before = np.zeros((2, *self.sensor.shape), np.float32)
        if previous is not None:
            before = carry(previous.range_map, previous.returns, self.sensor, motion)
        gone = [k for k, image in enumerate(images) if image is None]
        inputs = (atlas(images, TILE), a.grid, a.without(gone), a.rays, before)
        condition = EncoderGraph(self.student)(*(torch.from_numpy(np.asarray(v)) for v in inputs))
        x = torch.zeros(1, 2, *self.sensor.shape)
        code, logit, intensity = DenoiserGraph(self.student)(x, torch.ones(1), *condition)
        decoded = DecoderGraph(self.sensor.min_range_m, self.sensor.max_range_m)(code, logit)
        return Maps(*(v.numpy() for v in decoded), intensity[0].numpy())


class Oracle(StandIn):
    """Knows the truth where a camera looks that is there, and says 30 m elsewhere; draws honest samples."""

    truth = np.zeros(SENSOR.shape, np.float32)

    def maps(self, images, steps=1, seed=0):
        gone = [k for k, image in enumerate(images) if image is None]
        known = ~np.isin(self.aligned.view, gone).any(0) if gone else np.ones(self.sensor.shape, bool)
        ranges = np.where(known & (self.truth > 0), self.truth, np.float32(30))
        if steps > 1:  # the truth is one draw of the same bell curve about 30 m
            ranges = np.float32(30) + np.random.default_rng(seed + 1).normal(0, 2, self.sensor.shape).astype(
                np.float32
            )
        probability = (self.truth > 0).astype(np.float32)
        return Maps(ranges, probability, np.zeros(self.sensor.shape, np.float32))


@pytest.fixture(scope="module")
def scenes():
    return list(SceneMaker(RIG, SENSOR, TILE).scenes(SEEDS[:2]))


def test_the_figures_are_those_of_the_training_curve(scenes):
    generator = TorchStandIn()
    bank = build_bank(
        RIG, SENSOR, size=1, tile=TILE, hypotheses=generator.hypotheses, lidar_height=generator.lidar_height
    )
    limits = (SENSOR.min_range_m, SENSOR.max_range_m)
    predict = student_predictor(generator.student, limits)
    expected = evaluate(predict, SceneStream(bank, SENSOR), len(scenes), batch=2)
    found = measure.sums_of([(generator.maps(s.images), s) for s in scenes], generator.seen)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


def test_a_report_stands_beside_its_ladder(scenes):
    sweeps = list(SceneMaker(RIG, SENSOR, TILE).sweeps(range(1_000_000, 1_000_003)))
    baseline = ConstantMap(np.full(SENSOR.shape, 20, np.float32), np.ones(SENSOR.shape, np.float32))
    result = measure.with_ladder(TorchStandIn(), scenes, baseline, sweeps)
    assert set(result["report"]["ladder"]) == {"best constant map", "nearest training sweep"}
    assert result["scenes"] == 2
    mean = np.mean([np.abs(20 - s.range_map)[(s.range_map >= 5) & (s.range_map <= 65)].sum() for s in scenes])
    rays = np.mean([((s.range_map >= 5) & (s.range_map <= 65)).sum() for s in scenes])
    assert result["constant map"]["mae_m"] == pytest.approx(mean / rays, rel=1e-5)
    json.dumps(result, allow_nan=False)
    alone = measure.with_ladder(
        TorchStandIn(), scenes, baseline, list(SceneMaker(RIG, SENSOR, TILE).sweeps([]))
    )
    assert set(alone["report"]["ladder"]) == {"best constant map"}


def test_a_camera_that_is_gone_costs_only_where_it_looked(scenes):
    generator = Oracle()
    generator.truth = scenes[0].range_map
    found = measure.dropped_cameras(generator, scenes[:1])
    assert list(found) == [view.name for view in RIG]
    for figures in found.values():
        assert figures["with"]["abs_rel_looked"] == 0
        assert figures["without"]["abs_rel_looked"] > 0.1
        assert figures["without"]["abs_rel_elsewhere"] == 0


def test_honest_samples_cover_as_often_as_they_say(scenes):
    generator = Oracle(load_sensor("pandar128").with_columns(360))
    drawn = 30 + np.random.default_rng(0).normal(0, 2, generator.sensor.shape).astype(np.float32)
    generator.truth = drawn
    scene = replace(scenes[0], range_map=drawn)
    found = measure.drawn_samples(generator, [scene], samples=9, steps=2)
    for part in ("seen", "unseen"):
        assert found[part]["coverage"][0.5] == pytest.approx(0.5, abs=0.02)
        assert found[part]["coverage"][0.8] == pytest.approx(0.8, abs=0.02)
    generator.maps = lambda images, **_: Maps(drawn * 1.5, np.ones_like(drawn), drawn)  # sure, and wrong
    assert measure.drawn_samples(generator, [scene], samples=9, steps=2)["seen"]["coverage"][0.8] == 0


def test_rigs_and_sensors_that_training_never_drew():
    rigs, sensors = other_rigs(RIG, 3), other_sensors(SENSOR, 2)
    assert [len(rig) for rig in rigs] == [6, 3, 3]
    assert rigs == other_rigs(RIG, 3)
    assert sensors[0].shape == SENSOR.shape
    assert not np.allclose(sensors[0].elevations_deg, sensors[1].elevations_deg)
    baseline = ConstantMap(np.full(SENSOR.shape, 20, np.float32), np.ones(SENSOR.shape, np.float32))
    found = measure.other_rig(
        TorchStandIn(), rigs[0], sensors[0], SEEDS[:1], baseline, device="cpu", compiled=None
    )
    assert found["rig"] == "ring of 6"
    assert found["model"]["abs_rel_seen"] > 0
    # six cameras of 70 degrees leave no horizon unseen
    ring = StandIn()
    ring.set_rig(rigs[0])
    horizon = int(np.abs(SENSOR.elevations_deg).argmin())
    assert ring.seen[horizon].all()


def test_a_still_world_flickers_by_noise_alone():
    maker = SceneMaker(RIG, SENSOR, TILE)
    still = maker.still_world(STILL_SEEDS.start, 3, moving=False)
    driving = maker.still_world(STILL_SEEDS.start, 3, moving=True)
    assert np.array_equal(still[0].pose, still[2].pose)
    found = measure.flickering(TorchStandIn(), still, driving)
    assert 0 < found["still"]["true"]["median_change_m"] < 0.1
    assert {"generated", "true", "knowing before"} <= found["still"].keys() & found["driving"].keys()
    assert found["driving"]["true"]["frames"] == 2
    assert found["driving"]["true"]["l1_sum_m"]["mean"] < 4  # a toy grid of 5 degrees


def test_the_last_frame_of_a_drive_is_measured_with_and_without_those_before():
    maker = SceneMaker(RIG, SENSOR, TILE)
    drive = maker.still_world(STILL_SEEDS.start, 3, moving=True)
    found = measure.remembering(TorchStandIn(), [drive])
    assert (found["drives"], found["frames"]) == (1, 3)
    assert found["generated"].keys() == found["knowing before"].keys()
    assert found["generated"]["mae_m_unseen"] != found["knowing before"]["mae_m_unseen"]


def test_sweeps_one_after_another_know_the_one_before_and_the_motion():
    calls = []

    def generator(images, **options):
        calls.append(options)
        return Sweep(np.full(SENSOR.shape, len(calls), np.float32), SENSOR)

    ahead = np.eye(4)
    ahead[0, 3] = 2.0  # driven on by 2 m
    scenes = [SimpleNamespace(images=None, pose=pose) for pose in (np.eye(4), ahead)]
    measure.one_after_another(generator, scenes)
    assert calls[0] == {}
    assert calls[1]["previous"].range_map[0, 0] == 1
    assert calls[1]["motion"][0, 3] == -2.0  # what stood at 10 m is at 8 m


def test_flicker_counts_changes_and_blinking():
    maps = [np.array([[10.0, 0.0, 100.0, 20.0]]), np.array([[11.0, 5.0, 90.0, 0.0]])]
    found = flicker(maps)
    assert found == {"mean_change_m": 1.0, "median_change_m": 1.0, "blinking_share": 0.5}
    assert flicker([np.zeros((1, 2))] * 2)["mean_change_m"] is None
    with pytest.raises(ValueError, match="at least 2"):
        flicker(maps[:1])


def test_a_region_without_rays_has_no_figure():
    sums = RaySums()
    one = torch.full((1, 4), 10.0)
    sums.add(one, torch.ones(1, 4), one, {"nowhere": torch.zeros(1, 4, dtype=torch.bool)})
    assert sums.result() == {"mae_m": 0.0, "abs_rel": 0.0, "return_accuracy": 1.0}


def test_another_sensor_has_the_grid_of_the_graphs():
    generator = LidarGenerator.from_bundle("constant", engine="onnxruntime-cpu", threads=1)
    other = replace(generator.sensor, name="tilted", elevations_deg=generator.sensor.elevations_deg - 1)
    blank = [np.zeros((352, 640, 3), np.uint8)] * 3
    sweep = generator.with_sensor(other)(blank)
    assert sweep.sensor.name == "tilted"
    assert np.array_equal(sweep.range_map, generator(blank).range_map)  # the constant bundle reads no rays
    with pytest.raises(ConfigError, match="export them for this sensor"):
        generator.with_sensor(SENSOR)
