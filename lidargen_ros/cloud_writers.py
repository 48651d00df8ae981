# SPDX-License-Identifier: Apache-2.0
"""Point clouds as PLY (1.0) and PCD (0.7) files, binary, x y z in metres."""

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray


def write_ply(file: BinaryIO, points: NDArray) -> None:
    """``points`` [N, 3] as vertices, little-endian float32."""
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(points)}",
        *(f"property float {axis}" for axis in "xyz"),
        "end_header",
    ]
    _write(file, header, points)


def write_pcd(file: BinaryIO, points: NDArray) -> None:
    """``points`` [N, 3] as an unorganised cloud, little-endian float32."""
    header = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        "FIELDS x y z",
        "SIZE 4 4 4",
        "TYPE F F F",
        "COUNT 1 1 1",
        f"WIDTH {len(points)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(points)}",
        "DATA binary",
    ]
    _write(file, header, points)


def _write(file: BinaryIO, header: list[str], points: NDArray) -> None:
    file.write("".join(f"{line}\n" for line in header).encode("ascii"))
    file.write(np.ascontiguousarray(points, dtype="<f4").tobytes())
