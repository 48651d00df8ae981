# SPDX-License-Identifier: Apache-2.0
"""Trains an experiment: ``python -m training.train EXPERIMENT [key=value ...]``, alone or under ``torchrun``.

python -m training.train student_nano batch=16
torchrun --nproc_per_node=8 -m training.train published_7b --folder runs/street
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from rich.logging import RichHandler

from lidargen_ros.errors import LidargenError

from .config import dump, experiment_path, load_experiment, read_yaml
from .kinds import experiment_class, recipe_class
from .recipe import Experiment

log = logging.getLogger(__name__)
RESUMABLE = (
    75  # exit code of a run that a signal stopped and the same command continues (EX_TEMPFAIL of sysexits.h)
)


def train(experiment: Experiment, run: Path | None) -> None:
    """One run in the folder ``run`` (None: a new one below ``out``), or this rank's part of it."""
    from .loop import ranks
    from .loop.outputs import CONSOLE
    from .loop.trainer import Trainer

    started = time.perf_counter()
    device = ranks.pick_device(experiment.device)
    with ranks.process_group(device, needed=experiment.parallel == "fsdp"):
        first = ranks.rank() == 0
        logging.basicConfig(
            level=logging.INFO if first else logging.ERROR,
            format="%(message)s",
            handlers=[RichHandler(console=CONSOLE, show_path=False)],
        )
        folder = ranks.shared(
            run or Path(experiment.out) / f"{experiment.name}_{time.strftime('%Y%m%d_%H%M%S')}"
        )
        if first:
            write_config(experiment, folder)
        recipe = recipe_class(experiment.kind)(experiment, device)
        trainer = Trainer(recipe, experiment, folder, device, started)
        log.info(
            "%s: from %d to %d samples on %d x %s",
            folder,
            trainer.samples,
            experiment.samples,
            ranks.count(),
            device,
        )
        trainer.run()
        if first:
            print(f"run written to {folder}; see {folder / 'report.md'}")


def write_config(experiment: Experiment, folder: Path) -> None:
    """``config.yaml``; what a continued run does otherwise than before is said."""
    folder.mkdir(parents=True, exist_ok=True)
    file, text = folder / "config.yaml", dump(experiment)
    if file.is_file():
        before, now = (set(content.splitlines()) for content in (file.read_text(), text))
        if before != now:
            log.warning("settings change: %s -> %s", sorted(before - now), sorted(now - before))
    file.write_text(text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", help="name in config/experiments/, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. batch=8 optimiser.lr=1e-3")
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder of the run; goes on from the checkpoint that it holds",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    arguments = parser.parse_intermixed_args(argv)
    try:
        path = experiment_path(arguments.experiment)
        kind = experiment_class(read_yaml(path).get("kind"), path)
        experiment = load_experiment(kind, arguments.experiment, arguments.overrides)
        if arguments.print_config:
            print(dump(experiment), end="")
            return 0
        from .loop.trainer import Stopped

        try:
            train(experiment, arguments.folder)
        except Stopped as stopped:
            if os.environ.get("RANK", "0") == "0":
                print(stopped, file=sys.stderr)
            return RESUMABLE
    except LidargenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
