# SPDX-License-Identifier: Apache-2.0
"""The student's design by experiment: variants that differ in one choice, trained alike on the same stored scenes.

    python tools/ablate_student.py --out out/ablations --seconds 470 [--samples 30000] [--variants reference infinity ...]
    python tools/ablate_student.py --tiny --out out/tiny                  # seconds, on a CPU: does all of it run?

Same scenes, order, noise levels and number of samples (unless given, as many as the pace of a short trial allows); every
second row and column of the sensor, a quarter of the pictures' pixels. Variants run in the order of importance; what no
longer fits into ``--seconds`` is left out. After each, ``ablations.json`` (settings, curves, figures), ``ablations.md``
(tables) and ``ablations.png`` (curves) are written anew. On a GPU run ``--tiny`` first: it captures CUDA graphs of every
variant without compiling anything.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lidargen_ros.errors import LidargenError
from tools.ablations.laboratory import Laboratory
from tools.ablations.loop import optimiser_of
from tools.ablations.report import write
from tools.ablations.scenes import TINY, Setup
from tools.ablations.variants import VARIANTS
from tools.run_student import commit
from training.loop.ranks import pick_device

log = logging.getLogger("ablate")
RESERVE_S = 5.0  # for the last figures and files


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [v.name for v in VARIANTS]
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=470.0, help="for everything, compilation included")
    parser.add_argument("--samples", type=int, help="per variant (default: as many as fit)")
    parser.add_argument("--scenes", type=int, help=f"rendered for training (default {Setup.scenes})")
    parser.add_argument(
        "--variants", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-graphs", action="store_true", help="train step by step, without CUDA graphs")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: whether it runs, not what is better")
    given = parser.parse_args(arguments)
    started = time.perf_counter()

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    setup = TINY if given.tiny else Setup()
    sizes = {"samples": given.samples, "scenes": given.scenes}
    setup = replace(setup, **{key: value for key, value in sizes.items() if value is not None})
    device = pick_device(given.device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_stream(torch.cuda.Stream())  # graphs cannot be captured on the default stream
        torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")

    laboratory = Laboratory(
        setup, device, deadline=started + given.seconds - RESERVE_S, graphs=cuda and not given.no_graphs
    )
    wanted = [v for v in VARIANTS if v.name in given.variants]
    if setup.samples is None:
        tokenizers = int(any(v.answer == "latent" for v in wanted))
        laboratory.choose_samples(len(wanted) + tokenizers)
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    constant = laboratory.constant_map()
    for variant in wanted:
        log.info("%s, after %.0f s", variant.name, time.perf_counter() - started)
        try:
            found[variant.name] = laboratory.run(variant)
        except LidargenError as problem:
            log.warning("left out: %s", problem)
            left_out[variant.name] = str(problem)
        result = {
            "command": " ".join(["tools/ablate_student.py", *(sys.argv[1:] if arguments is None else arguments)]),
            "commit": commit(), "machine": torch.cuda.get_device_name() if cuda else "CPU", "torch": torch.__version__,
            "cuda_graphs": laboratory.graphs, "setup": asdict(setup), "sensor": laboratory.training.sensor.name,
            "samples": laboratory.samples, "optimiser": asdict(optimiser_of(laboratory.samples)),
            "seconds": time.perf_counter() - started, "constant_map": constant, "left_out": left_out, "variants": found,
        }  # fmt: skip
        write(given.out, result)


if __name__ == "__main__":
    main()
