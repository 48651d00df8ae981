# SPDX-License-Identifier: Apache-2.0
"""Clouds from single files: npz, npy, KITTI and nuScenes ``.bin``, and PCD (ascii or binary)."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InputError
from .archives import MIB, parse_npy, parse_npz
from .pointclouds import Cloud, decode_cloud

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
    if len(arrays) == 1:
        return _from_table(next(iter(arrays.values())), path)
    names = [name for name in ("xyz", "points") if name in arrays]
    if names:
        columns = list(np.asarray(arrays[names[0]])[:, :3].T)
    elif {"x", "y", "z"} <= arrays.keys():
        columns = [arrays[axis] for axis in "xyz"]
    else:
        raise DataError(f"{path}: holds {sorted(arrays)}; expected points, xyz, or x, y and z")
    for name in ("intensity", "ring"):
        columns.append(arrays.get(name, arrays.get("row") if name == "ring" else None))
    if any(column is not None and column.shape != columns[0].shape for column in columns):
        raise DataError(f"{path}: points, intensity and ring differ in length")
    cloud = _from_table(np.stack([np.asarray(column, np.float64) for column in columns[:3]], axis=-1), path)
    if len(cloud) != len(columns[0]):
        raise DataError(f"{path}: holds NaN, infinity or points at the origin; remove them")
    intensity, ring = columns[3:]
    return Cloud(
        points=cloud.points,
        intensity=None if intensity is None else intensity.astype(np.float32),
        ring=None if ring is None else ring.astype(np.int32),
        shape=cloud.shape,
    )


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
