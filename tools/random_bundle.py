# SPDX-License-Identifier: Apache-2.0
"""Makes a bundle of random weights: it is as fast as a trained one, and its sweeps mean nothing.

    python tools/random_bundle.py base --out /tmp/base        # needs torch alone; engines torch, torch-compile, torch-aoti

It holds no ONNX graphs: speed is measured where a trained model of that size does not exist yet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lidargen_ros.bundle import write_manifest
from lidargen_ros.cameras.align import DEFAULT_HYPOTHESES, DEFAULT_TILE
from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.engines.select import WEIGHTS
from lidargen_ros.models.student import BASE, NANO, Student
from lidargen_ros.models.student_weights import folded, write_student
from lidargen_ros.sensors import load_sensor

CONFIGS = {"nano": NANO, "base": BASE}


def random_bundle(size: str, out: Path) -> Path:
    """Writes the bundle ``random-SIZE`` and returns its folder."""
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    write_student(folded(Student(CONFIGS[size])), out / WEIGHTS)
    manifest = {
        "name": f"random-{size}",
        "family": "student",
        "version": "0",
        "description": "random weights, for measuring speed; its sweeps mean nothing",
        "precision": "fp32",
        "licence": "Apache-2.0",
        "sensor": load_sensor("pandar128").to_dict(),
        "rig": load_rig("published").to_dict(),
        "preprocessing": {
            "tile": list(DEFAULT_TILE),
            "hypotheses": list(DEFAULT_HYPOTHESES),
            "lidar_height_m": 1.9,
        },
        "sampler": {"steps": 1, "return_threshold": 0.5},
    }
    write_manifest(out, manifest, [WEIGHTS])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=CONFIGS)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    print(random_bundle(arguments.size, arguments.out))


if __name__ == "__main__":
    main()
