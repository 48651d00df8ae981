# SPDX-License-Identifier: Apache-2.0
"""``python -m training.data.synthesize --out DATASET``: synthetic drives in the clip format.

Each clip is one world of the scene generator, driven through at 10 spins per second with every column at its own
moment, and pictures at 30 Hz whose every third coincides with the start of a spin. A seed always gives the same clip.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lidargen_ros.cameras.rig import Rig
    from lidargen_ros.sensors import Sensor

_START_US = 1_700_000_000_000_000
_PICTURES_PER_SPIN = 3


def clip_name(seed: int, seconds: float) -> str:
    """``<uuid>_<start>_<end>`` of a world's drive."""
    name = uuid.uuid5(uuid.NAMESPACE_URL, f"lidargen-scene:{seed}")
    return f"{name}_{_START_US}_{_START_US + round(seconds * 1e6)}"


def spins(seed: int, sensor: Sensor, count: int, device: str) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """(range map, intensity, LiDAR-to-world ``[2, 4, 4]`` at start and end) of consecutive spins."""
    import torch

    from ..scenes.render import advance, make_worlds, render_lidar, sample_ego

    worlds = make_worlds(torch.tensor([seed], device=device))
    first = sample_ego(worlds, worlds.seeds)
    directions = torch.tensor(sensor.directions(), device=device)
    times = torch.tensor(sensor.column_times(), device=device)
    begin = -0.5 * count * sensor.spin_time_s
    ego = advance(worlds, first, begin)
    for k in range(count):
        t = begin + k * sensor.spin_time_s
        after = advance(worlds, first, t + sensor.spin_time_s)
        # Straight motion between the two poses, as the format supposes.
        velocity = (after.position - ego.position) / sensor.spin_time_s
        ego = replace(ego, velocity=velocity, yaw_rate=(after.yaw - ego.yaw) / sensor.spin_time_s)
        seen = render_lidar(
            worlds.at(t), directions, ego, column_times=times, seed=k, max_range=sensor.max_range_m
        )
        poses = torch.cat([ego.matrix(), after.matrix()]).cpu().numpy()
        yield seen["range"][0].cpu().numpy(), seen["intensity"][0].cpu().numpy(), poses
        ego = after


def pictures(
    seed: int, rig: Rig, count: int, rate_hz: float, seconds: float, device: str
) -> Iterator[tuple[NDArray, NDArray]]:
    """(uint8 ``[V, H, W, 3]``, LiDAR-to-world ``[4, 4]``) of consecutive moments."""
    import torch

    from ..scenes.render import advance, make_worlds, render_cameras, rig_rays, sample_ego

    worlds = make_worlds(torch.tensor([seed], device=device))
    first = sample_ego(worlds, worlds.seeds)
    camera = rig.views[0].camera
    rays = rig_rays(rig, camera.height, camera.width, device)
    for k in range(count):
        t = -0.5 * seconds + k / rate_hz
        ego = advance(worlds, first, t)
        yield render_cameras(worlds.at(t), *rays, ego, seed=k)[0].cpu().numpy(), ego.matrix()[0].cpu().numpy()


def f_theta_rig(name: str, width: int) -> tuple[Rig, dict[str, NDArray]]:
    """The rig at a picture width, as f-theta cameras that the format can hold, and their vectors."""
    from lidargen_ros.cameras.rig import Rig, View, load_rig

    from .ftheta_fit import lens_for

    rig = load_rig(name)
    lenses = [lens_for(view.camera, width) for view in rig]
    views = [
        View(f"camera_{v.name}", lens.target, v.camera_to_lidar) for v, lens in zip(rig, lenses, strict=True)
    ]
    return Rig(tuple(views), rig.name, rig.source), {
        v.name: x.vector for v, x in zip(views, lenses, strict=True)
    }


def write_clip(
    root: Path, seed: int, spin_count: int, rig: Rig, vectors: dict[str, NDArray], sensor: Sensor, device: str
) -> str:
    """Render and write one clip; returns its name. A clip that is there already is left alone."""
    from .clips_writer import ClipWriter

    seconds = spin_count * sensor.spin_time_s
    name = clip_name(seed, seconds)
    if (root / "metadata" / f"{name}.npz").exists():
        return name
    rate = _PICTURES_PER_SPIN / sensor.spin_time_s
    with ClipWriter(root, name, sensor, vectors, fps=rate) as clip:
        moments = pictures(seed, rig, spin_count * _PICTURES_PER_SPIN, rate, seconds, device)
        for k, (images, pose) in enumerate(moments):
            for view, image in zip(rig, images, strict=True):
                clip.add_image(view.name, image)
                clip.add_camera_pose(
                    view.name, k, pose @ view.camera_to_lidar, _START_US + round(k / rate * 1e6)
                )
        for k, (ranges, intensity, poses) in enumerate(spins(seed, sensor, spin_count, device)):
            times = tuple(_START_US + round((k + i) * sensor.spin_time_s * 1e6) for i in (0, 1))
            clip.add_spin(k * _PICTURES_PER_SPIN, ranges, poses, times, intensity)
        clip.finish()
    return name


def main(
    out: Annotated[Path, typer.Option(help="data set; made if absent, added to if there")],
    clips: Annotated[int, typer.Option(min=1)] = 8,
    seconds: Annotated[
        float, typer.Option(min=0.2, help="length of a clip; worlds are about 200 m long")
    ] = 6.0,
    first_seed: Annotated[
        int, typer.Option(help="world of the first clip; see training/scenes/seeds.py")
    ] = 1_000_000,
    rig: Annotated[str, typer.Option(help="name or YAML file")] = "published",
    sensor: Annotated[str, typer.Option(help="name or YAML file")] = "pandar128_3600",
    width: Annotated[int, typer.Option(help="of the pictures")] = 1280,
    split: Annotated[str, typer.Option(help="name of the split file to which the clips are added")] = "train",
    device: Annotated[str, typer.Option(help="cuda, cpu; empty: a GPU if there is one")] = "",
) -> None:
    """Write synthetic drives in the clip format. Run it again to go on after a stop."""
    import torch

    from lidargen_ros.errors import LidargenError
    from lidargen_ros.sensors import load_sensor

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        lidar = load_sensor(sensor)
        cameras, vectors = f_theta_rig(rig, width)
        names = [
            write_clip(out, seed, max(1, round(seconds / lidar.spin_time_s)), cameras, vectors, lidar, device)
            for seed in track(range(first_seed, first_seed + clips), "clips")
        ]
    except LidargenError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    listed = out / f"{split}.lst"
    known = listed.read_text().split() if listed.exists() else []
    listed.write_text("\n".join(dict.fromkeys([*known, *names])) + "\n")
    typer.echo(f"{len(names)} clips in {out}, listed in {listed.name}")


if __name__ == "__main__":
    typer.run(main)
