# SPDX-License-Identifier: Apache-2.0
"""Turns the folder of a training run (``tools/run_student.py``) into a shipped bundle.

python tools/make_bundle.py out/nano --name nano [--out lidargen_ros/bundles/nano] [--version 2]

The same as ``python export/export_onnx.py RUN --out lidargen_ros/bundles/NAME``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from export.export_onnx import main as export
from lidargen_ros.bundle import SHIPPED


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--version", default="1")
    given = parser.parse_args()
    out = given.out or SHIPPED / given.name
    return export([str(given.run), "--out", str(out), "--name", given.name, "--version", given.version])


if __name__ == "__main__":
    raise SystemExit(main())
