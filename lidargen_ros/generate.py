# SPDX-License-Identifier: Apache-2.0
"""``lidargen generate``: sweeps from pictures or clips with the published model, written as files.

    lidargen generate --images front.jpg rear_left.jpg rear_right.jpg --checkpoint FOLDER --out DIR
    lidargen generate --data ROOT --clip NAME --frames 0:200:10 --checkpoint FOLDER --out DIR
    torchrun --nproc_per_node=4 -m lidargen_ros.generate ...     # frames split over the GPUs

A frame's files depend on the frame, the seed and the options, never on the number of processes or their order.
Each file appears complete or not at all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import ConfigError, LidargenError
from .generate_frames import Frame, frames_of_clips, read_frame, read_picture, without_outliers, write_frame

if TYPE_CHECKING:
    from .cameras.rig import Rig
    from .models.published import PublishedPipeline
    from .models.published_options import PublishedOptions


def run(
    pipeline: PublishedPipeline,
    frames: Sequence[Frame],
    out: Path,
    rig: Rig,
    root: Path | None = None,
    filter_outlier: bool = False,
    save_latent: bool = False,
    resume: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> int:
    """Generate this process's share of the frames; returns how many were written."""
    from rich.progress import Progress

    mine = [f for f in frames[rank::world_size] if not (resume and (out / f"{f.name}.npz").is_file())]
    options = pipeline.options
    with Progress(disable=rank != 0) as bars:
        all_frames = bars.add_task("frames", total=len(mine))
        steps = bars.add_task("steps", total=options.steps + (options.solver == "adams_bashforth_2"))
        for frame in mine:
            inputs = read_frame(frame, root, rig)
            bars.reset(steps)
            generated = pipeline(
                inputs.images, frame.name, inputs.stamp_ns, progress=lambda *_: bars.advance(steps)
            )
            if filter_outlier:
                generated = without_outliers(generated)
            truth = None if inputs.measured is None else pipeline.truth(inputs.measured, inputs.stamp_ns)
            facts = {"frame": frame.name, **asdict(options), "filter_outlier": filter_outlier}
            write_frame(out, frame, inputs, generated, truth, facts, save_latent)
            bars.advance(all_frames)
    return len(mine)


def three_pictures(images: tuple[Path, Path, Path] | None) -> tuple[Path, Path, Path] | None:
    """Said before anything else is found missing: with fewer pictures the next option is taken for one."""
    if images is not None and (option := next((i for i in images if str(i).startswith("--")), None)):
        raise ConfigError(
            f"--images is followed by {images.index(option)} pictures and {option}: give 3, FRONT REAR_LEFT REAR_RIGHT"
        )
    return images


def build_options(mode: str, **changes: Any) -> PublishedOptions:
    """Options of a mode with those changes that are not None."""
    from .models.published_options import PublishedOptions

    given = {name: value for name, value in changes.items() if value is not None}
    return replace(PublishedOptions.named(mode), **given)


def generate(
    checkpoint: Annotated[Path, typer.Option(help="model.pt, model.safetensors or their folder.")],
    out: Annotated[Path, typer.Option("--out", "--save_dir", help="Folder for the results.")] = Path(
        "results"
    ),
    images: Annotated[
        tuple[Path, Path, Path] | None,
        typer.Option(callback=three_pictures, help="Pictures of front, rear left and rear right camera."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Root folder of clips (lidar_dataset_release).")] = None,
    clip: Annotated[
        list[str] | None, typer.Option(help="Clip below --data, or all; may be repeated.")
    ] = None,
    frames: Annotated[str, typer.Option(help="all, or frame numbers like 0,5,10:50:10.")] = "all",
    rig: Annotated[
        str, typer.Option(help="Rig for pictures: a name or a file; clips bring theirs.")
    ] = "published",
    mode: Annotated[
        str, typer.Option(help="corrected or reference, see docs/published_model.md.")
    ] = "corrected",
    guidance: Annotated[float | None, typer.Option(help="g in D_c + g (D_c - D_u).")] = None,
    ddim_iters: Annotated[int | None, typer.Option("--ddim_iters", "--steps", help="Sampler steps.")] = None,
    sigma_min: Annotated[float | None, typer.Option("--sigma_min", help="Smallest noise level.")] = None,
    solver: Annotated[
        str | None, typer.Option(help="adams_bashforth_2 (published), dpm_solver_2m, ...")
    ] = None,
    near_buffer: Annotated[float | None, typer.Option("--near_buffer", help="Metres beyond 5 m.")] = None,
    far_buffer: Annotated[float | None, typer.Option("--far_buffer", help="Metres before 100 m.")] = None,
    filter_outlier: Annotated[bool, typer.Option("--filter_outlier", help="Drop lone points.")] = False,
    n_views: Annotated[int, typer.Option("--n_views", help="Number of cameras.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Of the initial noise.")] = None,
    save_latent: Annotated[bool, typer.Option("--save-latent", help="Also write the LiDAR latent.")] = False,
    drop_padding: Annotated[
        bool, typer.Option("--drop-padding", help="Leave out padding tokens: faster, not equivalent.")
    ] = False,
    compile_blocks: Annotated[bool, typer.Option("--compile", help="torch.compile the network.")] = False,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Record the network as a CUDA graph.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:1, cpu; default: the GPU of this process.")
    ] = None,
    weights: Annotated[str, typer.Option(help="Of a training run: ema or reg.")] = "ema",
    camera_tokenizer: Annotated[
        Path | None, typer.Option("--camera_tokenizer", help="If not beside the checkpoint.")
    ] = None,
    lidar_tokenizer: Annotated[
        Path | None, typer.Option("--lidar_tokenizer", help="If not beside the checkpoint's folder.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let a TorchScript file run its code if it must.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Skip frames that are already there.")] = False,
) -> None:
    """Generate LiDAR sweeps from camera pictures with the published model (Cosmos-Transfer-LidarGen)."""
    from .cameras.rig import load_rig

    if n_views != 3:
        raise ConfigError(f"--n_views {n_views}: the published model has 3 cameras; leave it out")
    if (images is None) == (not clip):
        raise ConfigError("give either --images FRONT REAR_LEFT REAR_RIGHT or --clip (with --data)")
    if clip and data is None:
        raise ConfigError("--clip needs --data, the root folder of the clips")
    if weights not in ("ema", "reg"):
        raise ConfigError(f"--weights {weights} is unknown: use ema or reg")
    options = build_options(
        mode,
        guidance=guidance,
        steps=ddim_iters,
        sigma_min=sigma_min,
        solver=solver,
        near_buffer=near_buffer,
        far_buffer=far_buffer,
        seed=seed,
        drop_padding=drop_padding,
    )
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if images is not None:
        for path in images:
            read_picture(path)  # before minutes go by with loading
        todo = [Frame(images[0].stem, images=images)]
    else:
        assert data is not None
        todo = frames_of_clips(data, clip or [], frames)
    import torch

    from .models.published import PublishedPipeline

    try:
        out.mkdir(parents=True, exist_ok=True)  # before minutes go by with loading
        pipeline = PublishedPipeline.load(
            checkpoint,
            device or f"cuda:{os.environ.get('LOCAL_RANK', '0')}",
            options,
            camera_tokenizer,
            lidar_tokenizer,
            kind="ema" if weights == "ema" else "reg",
            trust=trust,
            compile_blocks=compile_blocks,
            cuda_graph=cuda_graph,
        )
        count = run(
            pipeline,
            todo,
            out,
            load_rig(rig),
            data,
            filter_outlier,
            save_latent,
            resume,
            rank,
            world_size,
        )
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"out of GPU memory ({str(error).splitlines()[0]}); close other programs, add --drop-padding, leave out "
            "--cuda-graph, or use a larger GPU"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{error.filename or out}: {error.strerror}; free some space or choose another folder with --out"
        ) from error
    typer.echo(f"{count} of {len(todo)} frames written to {out}" + (f" by process {rank}" if rank else ""))


def register(app: typer.Typer) -> None:
    """Add ``generate`` to a command-line application."""
    app.command("generate")(generate)


def main() -> None:
    """Entry of ``python -m lidargen_ros.generate`` and torchrun."""
    try:
        typer.run(generate)
    except LidargenError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
