# SPDX-License-Identifier: Apache-2.0
"""Writes a small clip of the toy world, and rebuilds its archives with members changed."""

import io
import tarfile

import numpy as np
from toy_world import ToyWorld

from lidargen_ros.bags.clips import PUBLISHED_VIEWS
from training.data.clips_writer import ClipWriter
from training.data.ftheta_fit import lens_for

CLIP = "da1b2c3d-1111-2222-3333-444455556666_1700000000000000_1700000000500000"


def write_clip(root, clip=CLIP, spins=3, cameras=PUBLISHED_VIEWS, world=None, intensity=True, step=2):
    """A clip whose spin k goes with picture ``step * k``; returns what was written, by frame."""
    world = world or ToyWorld()
    lens = lens_for(world.camera())
    period, t0 = world.sensor.spin_time_s, 1_700_000_000_000_000
    origin = np.linalg.inv(world.body(0) @ world.lidar_in_body)
    pose = lambda t: origin @ world.body(t) @ world.lidar_in_body  # noqa: E731
    written = {}
    with ClipWriter(
        root, clip, world.sensor, dict.fromkeys(cameras, lens.vector), fps=step / period
    ) as writer:
        for k in range(spins):
            ranges, t = world.spin(k * period), k * period
            poses = np.stack([pose(t), pose(t + period)]).astype(np.float32)
            times = (t0 + round(t * 1e6), t0 + round((t + period) * 1e6))
            values = (ranges / 100).astype(np.float32) if intensity else None
            writer.add_spin(step * k, ranges, poses, times, values)
            written[f"{step * k:06d}"] = (ranges, poses, times, values)
        for i, camera in enumerate(cameras):
            for n in range(step * (spins - 1) + 1):
                t = n * period / step
                writer.add_image(camera, world.picture(i, t))
                camera_pose = origin @ world.body(t) @ world.camera_in_body(i)
                writer.add_camera_pose(camera, n, camera_pose, t0 + round(t * 1e6))
        writer.finish()
    return written


def members(path):
    """Member name -> content of a tar."""
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def rewrite(path, change):
    """Rewrite a tar after ``change(members)`` has altered the dictionary; TarInfo values are added as they are."""
    content = members(path)
    content = change(content) or content
    with tarfile.open(path, "w") as tar:
        for name, data in content.items():
            if isinstance(data, tarfile.TarInfo):
                tar.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npy(array, pickle=False):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickle)
    return buffer.getvalue()
