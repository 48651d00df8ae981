# SPDX-License-Identifier: Apache-2.0
"""Turns the folder of a training run (``tools/run_student.py``) into a bundle.

python tools/make_bundle.py out/nano --name nano [--out lidargen_ros/bundles/nano]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from export.shared_weights import share_weights
from export.student import export_graphs
from lidargen_ros.bundle import SHIPPED, write_manifest
from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.engines.select import WEIGHTS
from lidargen_ros.frame_pipeline import GRAPHS
from lidargen_ros.models.student_weights import folded, write_student
from lidargen_ros.sensors import load_sensor
from training.config import build, read_yaml
from training.student.config import StudentExperiment
from training.student.pieces import load_student

TOLERANCE = 1e-4
CARD = """# {name}: a student trained on synthetic scenes

From ray-aligned pixels of any calibrated cameras to a {rows} x {columns} sweep with return probability and intensity.
Trained for {samples} procedural (synthetic) scenes with `{command}`; nothing real was seen in training.
For trying the software and as a start for post-training on your own clips: **not fit for real streets as it is**.
Figures on held-out synthetic scenes are in `metrics.json`. Licence: Apache-2.0.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--version", default="1")
    arguments = parser.parse_args()
    run: Path = arguments.run
    config = build(StudentExperiment, read_yaml(run / "config.yaml"))
    result = json.loads((run / "result.json").read_text())
    sensor, rig = load_sensor(config.data.sensor), load_rig(config.data.rig)
    out: Path = arguments.out or SHIPPED / arguments.name
    out.mkdir(parents=True, exist_ok=True)
    student = load_student(run)
    errors = export_graphs(student, out, sensor, config.data.tile, views=len(rig))
    print(f"relative error of the graphs in ONNX Runtime against torch: {errors}")
    if max(errors.values()) > TOLERANCE:
        raise SystemExit(
            f"error: the exported graphs differ from torch by more than {TOLERANCE}; no bundle written"
        )
    write_student(folded(student), out / WEIGHTS)
    share_weights([out / f"{graph}.onnx" for graph in GRAPHS], out / WEIGHTS)
    (out / "metrics.json").write_text(json.dumps({**result, "export_error": errors}, indent=1) + "\n")
    rows, columns = sensor.shape
    card = CARD.format(
        name=arguments.name, rows=rows, columns=columns, samples=result["samples"], command=result["command"]
    )
    (out / "README.md").write_text(card)
    manifest = {
        "name": arguments.name,
        "family": "student",
        "version": arguments.version,
        "description": f"student, {result['samples']} synthetic scenes",
        "precision": "fp32 arithmetic, fp16 weights",
        "licence": "Apache-2.0",
        "sensor": sensor.to_dict(),
        "rig": rig.to_dict(),
        "preprocessing": {
            "tile": list(config.data.tile),
            "hypotheses": list(config.data.hypotheses),
            "lidar_height_m": config.data.lidar_height_m,
        },
        "sampler": {"steps": 1, "return_threshold": 0.5},
    }
    graphs = [f"{graph}.onnx" for graph in GRAPHS]
    write_manifest(out, manifest, [*graphs, WEIGHTS, "README.md", "metrics.json"])
    print(f"{out}: {sum(f.stat().st_size for f in out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
