# SPDX-License-Identifier: Apache-2.0
"""``python -m training.train EXPERIMENT [key=value ...]``: the one entry of training."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

from lidargen_ros.errors import ConfigError, LidargenError

from .config import dump, experiment_path, load_experiment, read_yaml


def run_student(arguments: argparse.Namespace) -> None:
    from .student.config import StudentExperiment

    config = load_experiment(StudentExperiment, arguments.experiment, arguments.overrides)
    if arguments.print_config:
        print(dump(config), end="")
        return
    from .student.loop import StudentTrainer

    folder = Path(config.out) / f"{config.name}_{time.strftime('%Y%m%d_%H%M%S')}"
    trainer = StudentTrainer(config, folder)
    ladder = trainer.ladder(trainer.constant_map(64))
    result = {**trainer.run(), "constant_map": ladder}
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    Console().print_json(data=result)
    print(f"run written to {folder}")


KINDS = {"student": run_student}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("experiment", help="name in config/experiments/, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. batch=8 optimiser.lr=1e-3")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=Console(stderr=True))]
    )
    try:
        kind = read_yaml(experiment_path(arguments.experiment)).get("kind")
        if kind not in KINDS:
            raise ConfigError(
                f"experiment {arguments.experiment} has kind {kind!r}; known kinds: {', '.join(KINDS)}"
            )
        KINDS[kind](arguments)
    except LidargenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
