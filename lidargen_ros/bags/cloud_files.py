# SPDX-License-Identifier: Apache-2.0
"""Clouds from single files: npz, npy, KITTI and nuScenes ``.bin``, and PCD (ascii or binary)."""

import io
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from .archives import MIB, parse_npy, parse_npz
from .pointclouds import Cloud, cloud_from_message, decode_cloud

SUFFIXES = (".npz", ".npy", ".bin", ".pcd")
_MAX_BYTES = 512 * MIB
_PCD_TYPES = {
    ("I", 1): 1,
    ("U", 1): 2,
    ("I", 2): 3,
    ("U", 2): 4,
    ("I", 4): 5,
    ("U", 4): 6,
    ("F", 4): 7,
    ("F", 8): 8,
}


def read_cloud(path: Path) -> Cloud:
    """Cloud of one file; columns of a plain array are x, y, z, intensity, ring (as far as there are any).

    Raises:
        DataError: an unknown or damaged file.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: larger than {_MAX_BYTES // MIB} MiB; give single clouds")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        if path.suffix == ".npz":
            return _from_arrays(parse_npz(data, str(path), _MAX_BYTES), path)
        if path.suffix == ".npy":
            return _from_table(parse_npy(data, str(path), _MAX_BYTES), path)
        if path.suffix == ".bin":
            # nuScenes (x y z intensity ring) names its files .pcd.bin, KITTI (x y z intensity) .bin.
            width = 5 if path.name.endswith(".pcd.bin") else 4
            if len(data) % (4 * width):
                raise DataError(
                    f"{path}: {len(data)} bytes are no rows of {width} float32; is it a KITTI cloud?"
                )
            return _from_table(np.frombuffer(data, "<f4").reshape(-1, width), path)
        if path.suffix == ".pcd":
            return _from_pcd(data, path)
    except InputError as error:
        raise DataError(str(error)) from error
    raise DataError(f"{path}: not a cloud file; known are {', '.join(SUFFIXES)}, and rosbags with --topic")


def read_clouds(paths: Sequence[Path], topic: str = "", count: int = 10) -> list[Cloud]:
    """Clouds of single files, or the first ``count`` of a topic of each rosbag.

    Args:
        topic: PointCloud2 topic; empty takes the only one.

    Raises:
        DataError: see :func:`read_cloud`; a bag that cannot be read, or without that topic.
    """
    clouds: list[Cloud] = []
    for path in paths:
        if path.suffix in SUFFIXES:
            clouds.append(read_cloud(path))
        else:
            clouds.extend(_from_bag(path, topic, count))
    return clouds


def _from_bag(path: Path, topic: str, count: int) -> list[Cloud]:
    from .message_types import CLOUD
    from .reader import BagReader

    with BagReader(path) as bag:
        topics = [t.name for t in bag.topics.values() if t.msgtype == CLOUD]
        if topic not in topics and (topic or len(topics) != 1):
            listed = ", ".join(topics) or "none"
            raise DataError(f"bag {path}: give one of its PointCloud2 topics with --topic: {listed}")
        chosen = topic or topics[0]
        try:
            messages = islice(bag.messages([chosen]), count)
            return [cloud_from_message(message.decode(), f"{path}: {chosen}") for message in messages]
        except InputError as error:
            raise DataError(str(error)) from error


def _from_table(table: NDArray, path: Path) -> Cloud:
    if table.ndim != 2 or table.shape[1] < 3 or table.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: {table.shape} of {table.dtype}; expected points in rows of at least x, y, z"
        )
    table = table[np.isfinite(table[:, :3]).all(axis=1) & (table[:, :3] != 0).any(axis=1)]
    columns = table.shape[1]
    return Cloud(
        points=table[:, :3].astype(np.float32),
        intensity=table[:, 3].astype(np.float32) if columns > 3 else None,
        ring=table[:, 4].astype(np.int32) if columns > 4 else None,
        shape=(1, len(table)),
    )


def _from_arrays(arrays: dict[str, NDArray], path: Path) -> Cloud:
    """An npz: one table, or xyz (or points, or x, y and z) with intensity and ring (or row) beside."""
    if len(arrays) == 1:
        return _from_table(next(iter(arrays.values())), path)
    points = arrays.get("xyz", arrays.get("points"))
    axes = [arrays.get(axis) for axis in "xyz"] if points is None else list(points.T[:3])
    intensity, ring = arrays.get("intensity"), arrays.get("ring", arrays.get("row"))
    columns = [column for column in (*axes, intensity, ring) if column is not None]
    if (
        any(axis is None for axis in axes)
        or len({column.shape for column in columns}) != 1
        or columns[0].ndim != 1
    ):
        shapes = {name: array.shape for name, array in arrays.items()}
        raise DataError(
            f"{path}: holds {shapes}; expected points [N, 3], or x, y and z [N], and lists beside"
        )
    if ring is not None and intensity is None:
        columns.insert(3, np.zeros(len(ring)))
    cloud = _from_table(np.stack([np.asarray(column, np.float64) for column in columns], axis=-1), path)
    return cloud if intensity is not None else replace(cloud, intensity=None)


def _from_pcd(data: bytes, path: Path) -> Cloud:
    """PCD 0.7, data ascii or binary (point cloud library file format)."""
    header: dict[str, list[str]] = {}
    stream = io.BytesIO(data[: 1 << 16])
    for raw in stream:
        key, *values = raw.decode("ascii", "replace").split() or [""]
        if key and not key.startswith("#"):
            header[key] = values
        if key == "DATA":
            break
    body = data[stream.tell() :]
    try:
        names, kind = header["FIELDS"], header["DATA"][0]
        sizes, types = [int(size) for size in header["SIZE"]], header["TYPE"]
        counts = [int(count) for count in header.get("COUNT", ["1"] * len(names))]
        width, height = int(header["WIDTH"][0]), int(header["HEIGHT"][0])
        fields, offset = [], 0
        for name, size, letter, count in zip(names, sizes, types, counts, strict=True):
            fields.append((name, offset, _PCD_TYPES[letter, size], count))
            offset += size * count
        if kind == "ascii":
            table = np.loadtxt(io.BytesIO(body), ndmin=2, max_rows=width * height)
            columns = {name: table[:, index] for index, name in enumerate(names)}
            order = [columns[name] for name in ("x", "y", "z", "intensity", "ring") if name in columns]
            return _from_table(np.stack(order, axis=-1), path)
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f"{path}: not a PCD file that can be read ({error!r}); save it as binary") from error
    if kind != "binary":
        raise DataError(f"{path}: PCD with data {kind}; save it as ascii or binary")
    return decode_cloud(body, fields, width=width, height=height, point_step=offset, where=str(path))
