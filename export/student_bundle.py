# SPDX-License-Identifier: Apache-2.0
"""The folder of a training run of a student -> its bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from export.equality import TOLERANCE
from export.real_inputs import student_inputs
from export.shared_weights import share_weights
from export.student import SAMPLER, export_graphs
from lidargen_ros.bundle import write_manifest
from lidargen_ros.cameras.rig import load_rig
from lidargen_ros.engines.select import WEIGHTS
from lidargen_ros.errors import CheckpointError, ConfigError
from lidargen_ros.models.student_weights import folded, write_student
from lidargen_ros.sensors import load_sensor
from training.config import build, read_yaml
from training.student.config import StudentExperiment
from training.student.pieces import load_student

CARD = """# {name}: a student trained on {what}

From ray-aligned pixels of any calibrated cameras to a {rows} x {columns} sweep with return probability and intensity.
Trained for {samples} samples with `{command}`. {limits}
Figures on held-out samples are in `metrics.json`. Licence: {licence}.
"""
SYNTHETIC = {
    "what": "synthetic scenes",
    "limits": "Nothing real was seen in training. For trying the software and as a start for post-training on your own "
    "clips: **not fit for real streets as it is**.",
    "licence": "Apache-2.0",
}
CLIPS = {
    "what": "recorded clips",
    "limits": "Fit for what the clips show, as far as it was evaluated there.",
    "licence": "that of the clips it was trained on",
}


def export_student(run: Path, out: Path, *, name: str, version: str, precision: str) -> dict[str, Any]:
    """Writes the bundle of a run and returns the errors of its graphs.

    Raises:
        CheckpointError: the folder holds no weights, or no ``config.yaml``.
        ConfigError: the graphs differ from torch by more than the precision explains; the bundle has no manifest then.
    """
    if not (run / "config.yaml").is_file():
        raise CheckpointError(f"{run} holds no config.yaml; give the folder of a training run")
    config = build(StudentExperiment, read_yaml(run / "config.yaml"))
    figures = run / "result.json"
    result = json.loads(figures.read_text()) if figures.is_file() else {}
    sensor = load_sensor(own if (own := run / "sensor.yaml").is_file() else config.data.sensor)
    rig = load_rig(own if (own := run / "rig.yaml").is_file() else config.data.rig)
    data, student = config.data, load_student(run)
    out.mkdir(parents=True, exist_ok=True)
    errors = export_graphs(
        student, out, sensor, data.tile, views=len(rig), precision=precision,
        real=student_inputs(sensor, data.tile, data.hypotheses, data.lidar_height_m),
    )  # fmt: skip
    worst = float(np.max([error for kinds in errors.values() for error in kinds.values()]))
    if not worst <= TOLERANCE[precision]:
        raise ConfigError(
            f"the graphs of {run} in {precision} differ from torch by {worst:.2g}, more than {TOLERANCE[precision]}; "
            "export in fp32, and report it if they still do"
        )
    sampler = [SAMPLER] if student.config.spread and precision == "fp32" else []
    graphs = [f"{graph}.onnx" for graph in (*errors, *sampler)]
    write_student(folded(student), out / WEIGHTS)
    (out / WEIGHTS).chmod(0o644)  # safetensors makes files that nobody else can read
    if precision == "fp32":  # else the graphs hold other numbers than the file
        share_weights([out / name for name in graphs], out / WEIGHTS)
    (out / "metrics.json").write_text(json.dumps({**result, "export_error": errors}, indent=1) + "\n")
    origin = CLIPS if data.clips else SYNTHETIC
    rows, columns = sensor.shape
    samples = result.get("samples", "an unknown number of")
    command = result.get("command", f"python -m training.train {config.name}")
    card = CARD.format(name=name, rows=rows, columns=columns, samples=samples, command=command, **origin)
    (out / "README.md").write_text(card)
    manifest = {
        "name": name,
        "family": "student",
        "version": version,
        "description": f"student, {samples} samples of {origin['what']}",
        "precision": f"{precision} arithmetic, fp16 weights",
        "licence": origin["licence"],
        "sensor": sensor.to_dict(),
        "rig": rig.to_dict(),
        "preprocessing": {
            "tile": list(data.tile),
            "hypotheses": list(data.hypotheses),
            "lidar_height_m": data.lidar_height_m,
        },
        "sampler": {"steps": 1, "return_threshold": 0.5},
    }
    write_manifest(out, manifest, [*graphs, WEIGHTS, "README.md", "metrics.json"])
    return errors
