# SPDX-License-Identifier: Apache-2.0
"""Exports a student, a tokenizer or a published diffusion model as a bundle of ONNX graphs.

    python export/export_onnx.py RUN --out BUNDLE                      a training run of a student
    python export/export_onnx.py TOKENIZER --out BUNDLE --size 512x1792
    python export/export_onnx.py CHECKPOINT --out BUNDLE [--no-check]  model.pt, model.safetensors, or their folder

What it is told apart by is what lies there. Every graph is checked and compared with torch on random numbers and on
pictures of the sample drive; the errors are in ``metrics.json``.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # of this checkout, installed or not

from rich.logging import RichHandler

from lidargen_ros.errors import CheckpointError, LidargenError, failed

PRECISIONS = ("fp32", "fp16", "bf16")
LIDAR_SIZE = (512, 1792)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="export_onnx.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of a run, or weights")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--name", help="of the bundle; default: the name of its folder")
    parser.add_argument("--version", default="1", help="of the bundle")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: fp32; diffusion model: as stored")
    parser.add_argument(
        "--size", type=size, default=LIDAR_SIZE, help="of a tokenizer's pictures; default 512x1792"
    )
    parser.add_argument(
        "--camera_tokenizer", "--camera-tokenizer", type=Path, help="default: beside the diffusion model"
    )
    parser.add_argument(
        "--lidar_tokenizer", "--lidar-tokenizer", type=Path, help="default: beside the diffusion model"
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not compare with torch (needs no memory for it)"
    )
    parser.add_argument("--trust", action="store_true", help="let a tokenizer run its own code if it must")
    given = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False, show_time=False)]
    )
    logging.getLogger("export_onnx").setLevel(logging.INFO)
    try:
        errors = export(given)
    except (LidargenError, OSError) as error:
        return failed(error, given.out, "free some space or give another --out")
    except KeyboardInterrupt:
        print(f"stopped; {given.out} is no whole bundle", file=sys.stderr)
        return 130
    for graph, kinds in errors.items():
        print(
            f"{graph}: relative error {', '.join(f'{value:.1e} ({kind})' for kind, value in kinds.items())}"
        )
    print(f"{given.out}: {sum(f.stat().st_size for f in given.out.iterdir() if f.is_file()) / 1e6:.1f} MB")
    return 0


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is no size: give height x width, as 512x1792")
    return int(match[1]), int(match[2])


def export(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Writes the bundle and returns its errors by graph and kind of input."""
    source: Path = given.source
    if not source.exists():
        raise CheckpointError(f"{source}: no such run or checkpoint; give a folder or a file that is there")
    common = {"name": given.name or given.out.resolve().name, "version": given.version}
    kind = kind_of(source)
    if kind == "student":
        from export.student_bundle import export_student

        run = source if source.is_dir() else source.parent
        return export_student(run, given.out, precision=given.precision or "fp32", **common)
    from export.published_bundle import export_published, export_tokenizer

    common |= {"check": not given.no_check, "trust": given.trust}
    if kind == "tokenizer":
        return export_tokenizer(
            source, given.out, precision=given.precision or "fp32", size=given.size, **common
        )
    return export_published(
        source, given.out, precision=given.precision,
        camera_tokenizer=given.camera_tokenizer, lidar_tokenizer=given.lidar_tokenizer, **common,
    )  # fmt: skip


def kind_of(source: Path) -> str:
    """``student``, ``tokenizer`` or ``published``, by the names of the weights."""
    if source.match("student*.safetensors") or list(source.glob("student*.safetensors")):
        return "student"
    from lidargen_ros.models.checkpoints import find_checkpoint, open_weights
    from lidargen_ros.models.tokenizer_jit import is_torchscript

    try:
        weights = find_checkpoint(source)
    except CheckpointError:
        return "tokenizer"
    if is_torchscript(weights):
        return "tokenizer"
    try:
        with open_weights(weights) as opened:
            return "published" if any(key.startswith("net.") for key in opened.shapes) else "tokenizer"
    except CheckpointError:
        if weights.stem == "model":  # no tokenizer is called that
            raise
        return "tokenizer"  # whose own loader knows more kinds of files, and says what is wrong


if __name__ == "__main__":
    raise SystemExit(main())
