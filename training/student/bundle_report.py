# SPDX-License-Identifier: Apache-2.0
"""What a bundle is worth on held-out synthetic scenes, beside the ladder: each function measures one promise of the student.

Everything runs through ``LidarGenerator``, so the figures are those of the files that ship.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lidargen_ros.cameras.align import align
from lidargen_ros.cameras.rig import Rig
from lidargen_ros.generator import LidarGenerator, Maps
from lidargen_ros.metrics.calibration import sample_calibration
from lidargen_ros.metrics.chamfer import summarise
from lidargen_ros.metrics.ladder import ConstantMap
from lidargen_ros.metrics.report import drive_report, ladder_report
from lidargen_ros.metrics.temporal import flicker, temporal_chamfer
from lidargen_ros.motion import invert_pose
from lidargen_ros.sensors import Sensor
from lidargen_ros.sweep import Sweep

from .evaluate import RaySums
from .held_out import Scene, SceneMaker

LEVELS = (0.5, 0.8)  # nominal coverage that a handful of samples can express


def sums_of(pairs: Sequence[tuple[Maps, Scene]], seen: NDArray) -> dict[str, float]:
    """The figures of the training curve: errors on all true returns in 5-65 m, right returns, AUROC."""
    sums = RaySums()
    regions = {"seen": torch.from_numpy(seen), "unseen": torch.from_numpy(~seen)}
    for maps, scene in pairs:
        add(sums, maps, scene, regions)
    return sums.result()


def add(sums: RaySums, maps: Maps, scene: Scene, regions: dict[str, torch.Tensor]) -> None:
    true = torch.from_numpy(scene.range_map)
    sums.add(torch.from_numpy(maps.range_m), torch.from_numpy(maps.probability), true, regions)


def constant_of(bundle: str) -> tuple[ConstantMap, Sensor]:
    """The map of a bundle that ignores its pictures, such as ``constant``, and the sensor of its rays."""
    generator = LidarGenerator.from_bundle(bundle)
    maps = generator.maps([np.zeros((*generator.tile, 3), np.uint8)] * len(generator.rig))
    return ConstantMap(maps.range_m, maps.probability), generator.sensor


def on_sensor(baseline: ConstantMap, of: Sensor, sensor: Sensor) -> ConstantMap:
    """A constant map on the rays of another sensor: each takes the nearest ray's."""
    rays = of.nearest_rays(sensor)
    return ConstantMap(baseline.range_map[rays], baseline.return_share[rays])


def sums_of_constant(baseline: ConstantMap, scenes: Sequence[Scene], seen: NDArray) -> dict[str, float]:
    maps = Maps(baseline.range_map, baseline.return_share, np.zeros_like(baseline.range_map))
    return sums_of([(maps, scene) for scene in scenes], seen)


def with_ladder(
    generator: LidarGenerator,
    scenes: Sequence[Scene],
    baseline: ConstantMap,
    training_maps: Sequence[NDArray],
) -> dict[str, Any]:
    """``model`` and ``constant map`` by the definitions of the curve; ``report``: ``drive_report`` and its ladder."""
    sensor, seen = generator.sensor, generator.seen
    pairs = [(generator.maps(scene.images), scene) for scene in scenes]
    options: dict[str, Any] = {"outside_neighbours": True, "birds_eye": True}
    report = drive_report(
        ((maps.range_m, maps.probability, scene.range_map) for maps, scene in pairs),
        sensor, sensor, baseline, seen=seen, threshold=generator.return_threshold, **options,
    )  # fmt: skip
    report["ladder"] = ladder_report(
        [scene.range_map for scene in scenes], sensor, constant=baseline, training_maps=training_maps or None,
        previous_maps=[None] * len(scenes), **options,
    )  # fmt: skip
    return {
        "scenes": len(scenes),
        "model": sums_of(pairs, seen),
        "constant map": sums_of_constant(baseline, scenes, seen),
        "report": report,
    }


def dropped_cameras(
    generator: LidarGenerator, scenes: Sequence[Scene]
) -> dict[str, dict[str, dict[str, float]]]:
    """One camera at a time stops arriving: figures where it looked and elsewhere, with and without it.

    ``looked``: rays that read a pixel of that camera at any supposed depth.
    """
    rig = generator.rig
    view = align(
        rig, generator.sensor, tile=generator.tile, hypotheses=generator.hypotheses,
        lidar_height=generator.lidar_height,
    ).view  # fmt: skip
    whole = [generator.maps(scene.images) for scene in scenes]
    found = {}
    for gone, camera in enumerate(rig):
        looked = torch.from_numpy((view == gone).any(axis=0))
        regions = {"looked": looked, "elsewhere": ~looked}
        before, after = RaySums(), RaySums()
        for maps, scene in zip(whole, scenes, strict=True):
            images = [None if k == gone else image for k, image in enumerate(scene.images)]
            add(before, maps, scene, regions)
            add(after, generator.maps(images), scene, regions)
        found[camera.name] = {
            side: {k: v for k, v in sums.result().items() if k.endswith(tuple(regions))}
            for side, sums in (("with", before), ("without", after))
        }
    return found


def other_rig(
    generator: LidarGenerator, rig: Rig, sensor: Sensor, seeds: Sequence[int], baseline: ConstantMap,
    *, device: str, compiled: bool | None,
) -> dict[str, Any]:  # fmt: skip
    """Figures with a calibration, or a beam table, that training never drew."""
    baseline = on_sensor(baseline, generator.sensor, sensor)
    generator = generator.with_sensor(sensor)
    generator.set_rig(rig)
    scenes = list(SceneMaker(rig, sensor, generator.tile, device, compiled).scenes(seeds))
    return {
        "rig": rig.name,
        "sensor": sensor.name,
        "scenes": len(scenes),
        "model": sums_of([(generator.maps(scene.images), scene) for scene in scenes], generator.seen),
        "constant map": sums_of_constant(baseline, scenes, generator.seen),
    }


def drawn_samples(
    generator: LidarGenerator, scenes: Sequence[Scene], *, samples: int, steps: int
) -> dict[str, Any]:
    """Do drawn sweeps cover the truth as often as they say? Central intervals per ray, in sight and out of it."""
    drawn, true = [], []
    for scene in scenes:
        sweeps = [generator(scene.images, steps=steps, seed=seed).range_map for seed in range(samples)]
        drawn.append(np.stack(sweeps))
        true.append(scene.range_map)
    stack, truth = np.concatenate(drawn, axis=1), np.concatenate(true)
    seen = np.concatenate([generator.seen] * len(scenes))
    parts = {"unseen": ~seen, "seen": seen}
    return {
        "scenes": len(scenes), "samples": samples, "steps": steps,
        **{name: sample_calibration(stack, truth, mask, LEVELS) for name, mask in parts.items()},
    }  # fmt: skip


def flickering(generator: LidarGenerator, still: Sequence[Scene], driving: Sequence[Scene]) -> dict[str, Any]:
    """Frames of a world where nothing moves. ``still``: the vehicle stands as well, only noise differs;
    ``driving``: it drives, and clouds are compared in the frame of the next. ``knowing before``: with the sweep before
    and the vehicle's motion, where the network reads them."""
    ways = {"generated": partial(alone, generator), "true": partial(measured, generator.sensor)}
    if generator.reads_previous:
        ways["knowing before"] = partial(one_after_another, generator)
    poses = [scene.pose for scene in driving]
    return {
        "still": {
            "frames": len(still),
            **{name: flicker([s.range_map for s in sweeps(still)]) for name, sweeps in ways.items()},
        },
        "driving": {
            name: summarise(temporal_chamfer([s.points() for s in sweeps(driving)], poses, queries=20_000))
            for name, sweeps in ways.items()
        },
    }


def remembering(generator: LidarGenerator, drives: Sequence[Sequence[Scene]]) -> dict[str, Any]:
    """What the last frame of a drive through a world where nothing moves gains from the frames before."""
    by_itself, knowing = [], []
    for drive in drives:
        last = drive[-1]
        motion = motion_between(drive[-2], last)
        before = one_after_another(generator, drive[:-1])[-1]
        by_itself.append((generator.maps(last.images), last))
        knowing.append((generator.maps(last.images, previous=before, motion=motion), last))
    return {
        "drives": len(drives), "frames": len(drives[0]),
        "generated": sums_of(by_itself, generator.seen), "knowing before": sums_of(knowing, generator.seen),
    }  # fmt: skip


def alone(generator: LidarGenerator, scenes: Sequence[Scene]) -> list[Sweep]:
    """Every scene by itself."""
    return [generator(scene.images) for scene in scenes]


def measured(sensor: Sensor, scenes: Sequence[Scene]) -> list[Sweep]:
    """The true sweeps."""
    return [Sweep(scene.range_map, sensor) for scene in scenes]


def one_after_another(generator: LidarGenerator, scenes: Sequence[Scene]) -> list[Sweep]:
    """Every scene with the sweep made for the one before, and the true motion."""
    sweeps = [generator(scenes[0].images)]
    for before, now in pairwise(scenes):
        motion = motion_between(before, now)
        sweeps.append(generator(now.images, previous=sweeps[-1], motion=motion))
    return sweeps


def motion_between(before: Scene, now: Scene) -> NDArray:
    """``[4, 4]`` coordinates in the LiDAR frame then -> now."""
    return invert_pose(now.pose) @ before.pose
