# SPDX-License-Identifier: Apache-2.0
"""A page of pictures of a student bundle: the first 12 held-out synthetic scenes, true and generated, and the worst five.

    python tools/student_pages.py nano --out docs/student

The worst are those with the largest AbsRel on rays that a camera sees, of the first ``--scenes`` held-out scenes. Writes
``README.md`` and JPEGs of at most ``--megabytes`` in all.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.progress import track

from lidargen_ros.errors import ConfigError, LidargenError
from lidargen_ros.generator import LidarGenerator
from lidargen_ros.sweep import Sweep
from lidargen_ros.viz import three_row_picture
from tools.run_student import commit
from training.student.bundle_report import sums_of
from training.student.held_out import SEEDS, Scene, SceneMaker

FIRST, WORST = 12, 5
PAGE = """# {name}: pictures

Synthetic scenes that training never saw (seeds {first} to {last}), through the bundle as it ships: one step, {engine}.
Above, the cameras with the generated points drawn in; then the true range map over the generated one; then both clouds,
the true one left. The first {shown} scenes are shown as they come; the worst {worst} of {scenes} follow.
Errors: AbsRel and MAE over true returns in 5-65 m on rays that some camera sees; share of all rays whose return is right.

Mean over {scenes} scenes: {mean}.
Bundle sha256 `{digest}`, commit `{commit}`, `{command}`.
"""


@dataclass(frozen=True)
class Entry:
    """A scene with its figures and its sweep."""

    scene: Scene
    generated: Sweep
    figures: dict[str, float]


def describe(figures: dict[str, float]) -> str:
    return (
        f"AbsRel {figures['abs_rel_seen']:.3f}, MAE {figures['mae_m_seen']:.2f} m, "
        f"returns {100 * figures['return_accuracy']:.1f} %"
    )


def entries(generator: LidarGenerator, seeds: range, device: str) -> list[Entry]:
    """Renders and generates every scene."""
    maker = SceneMaker(generator.rig, generator.sensor, generator.tile, device)
    return [
        Entry(
            scene,
            generator(scene.images),
            sums_of([(generator.maps(scene.images), scene)], generator.seen),
        )
        for scene in track(maker.scenes(seeds), "scenes", total=len(seeds))
    ]


def encode(pictures: list[NDArray], budget: int) -> list[bytes]:
    """JPEGs of the best common quality that fits.

    Raises:
        ConfigError: not even a poor quality fits.
    """
    for quality in (85, 80, 75, 70, 65, 60, 50, 40):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
        files = [cv2.imencode(".jpg", picture[..., ::-1], options)[1].tobytes() for picture in pictures]
        if sum(map(len, files)) <= budget:
            return files
    raise ConfigError(f"{len(pictures)} pictures do not fit {budget} bytes; use a smaller --width")


def write_page(
    out: Path, generator: LidarGenerator, found: list[Entry], width: int, budget: int
) -> list[Path]:
    """Pictures and README.md; returns the files."""
    first, worst = found[:FIRST], sorted(found, key=lambda e: -e.figures["abs_rel_seen"])[:WORST]
    shown = {f"scene_{e.scene.seed}.jpg": e for e in (*first, *worst)}
    pictures = [
        three_row_picture(e.scene.images, generator.rig, e.generated, Sweep(e.scene.range_map, generator.sensor), width)
        for e in shown.values()
    ]  # fmt: skip
    mean = {key: sum(e.figures[key] for e in found) / len(found) for key in found[0].figures}
    made_by = generator.describe()
    lines = [
        PAGE.format(
            name=made_by["model"], engine=made_by["engine"], digest=made_by["model_sha256"], commit=commit(),
            command=" ".join(["python", *sys.argv]), first=found[0].scene.seed, last=found[-1].scene.seed,
            shown=len(first), worst=len(worst), scenes=len(found), mean=describe(mean),
        )
    ]  # fmt: skip
    for title, part in (("first", first), ("worst", worst)):
        lines.append(f"## The {title}\n")
        for entry in part:
            seed = entry.scene.seed
            lines.append(f"Seed {seed}: {describe(entry.figures)}\n\n![scene {seed}](scene_{seed}.jpg)\n")
    text = "\n".join(lines)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("scene_*.jpg"):
        old.unlink()
    for name, data in zip(shown, encode(pictures, budget - len(text)), strict=True):
        (out / name).write_bytes(data)
    (out / "README.md").write_text(text)
    return [out / "README.md", *(out / name for name in shown)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", help="folder, or the name of a shipped one")
    parser.add_argument("--out", type=Path, default=Path("docs/student"))
    parser.add_argument("--scenes", type=int, default=40, help="of which the worst are sought")
    parser.add_argument("--width", type=int, default=960, help="of a picture, pixels")
    parser.add_argument("--megabytes", type=float, default=1.2)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="renders")
    arguments = parser.parse_args()
    try:
        generator = LidarGenerator.from_bundle(arguments.bundle, engine=arguments.engine)
        found = entries(generator, SEEDS[: arguments.scenes], arguments.device)
        files = write_page(arguments.out, generator, found, arguments.width, int(1e6 * arguments.megabytes))
    except LidargenError as error:
        raise SystemExit(f"error: {error}") from error
    size = sum(f.stat().st_size for f in files)
    print(f"{arguments.out}: {len(files) - 1} pictures, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
