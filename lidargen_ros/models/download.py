# SPDX-License-Identifier: Apache-2.0
"""``lidargen download``: the published weights and example data, from the Hugging Face hub with its own client.

The client shows progress, survives broken connections, reads the token from ``--token``, ``HF_TOKEN`` or
``hf auth login``, the server from ``HF_ENDPOINT``, and moves a file to its place only when it is complete.
What is added here: names, places, a check of the free space first, errors of one line, and that a large file
goes on after the program was stopped (recent clients start it anew).
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlparse

import typer

from ..bundle import file_sha256
from ..errors import CheckpointError, ConfigError

SPARE_BYTES = 1 << 30  # left free on the disk
LARGE_BYTES = 16 << 20  # files above this are resumed even after the program was stopped
OFFLINE = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class Source:
    """One repository of the hub.

    Attributes:
        folder: where it goes, below the output folder.
        files: what must be there in the end.
    """

    name: str
    repository: str
    kind: str  # "model" or "dataset"
    folder: str
    files: tuple[str, ...]


SOURCES = {
    source.name: source
    for source in (
        Source(
            "model",
            "nvidia/Cosmos-Transfer-LidarGen",
            "model",
            "checkpoints/Cosmos-Transfer-LidarGen",
            ("model.pt",),
        ),
        Source(
            "lidar-tokenizer",
            "nvidia/Cosmos-Tokenizer-CI8x8-Lidar",
            "model",
            "checkpoints/Cosmos-Tokenizer-CI8x8-Lidar",
            ("encoder.jit", "decoder.jit", "mean_std.pt"),
        ),
        Source("example", "nvidia/Cosmos-Transfer-LidarGen-Example", "dataset", "datasets", ()),
    )
}


def download(
    source: Source,
    out: Path,
    token: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> Path:
    """Fetch one repository into its folder below ``out`` and return that folder.

    Offline (argument or ``HF_HUB_OFFLINE``) nothing is fetched; the files must already be there.

    Raises:
        ConfigError: no access, no network or no space. CheckpointError: files are missing afterwards.
    """
    folder = out / source.folder
    wanted: dict[str, int | None] = dict.fromkeys(source.files)
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in OFFLINE
    if not offline:
        # Rate limits and hiccups are retried by the client; what comes back is worth telling.
        import huggingface_hub
        from huggingface_hub import constants
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        where = f"{source.repository} on {endpoint or constants.ENDPOINT}"
        api = huggingface_hub.HfApi(endpoint=endpoint, token=token)
        failures: tuple[type[Exception], ...] = (HfHubHTTPError, LocalEntryNotFoundError, *_network_errors())
        try:
            ask = api.dataset_info if source.kind == "dataset" else api.model_info
            info = ask(source.repository, revision=revision, files_metadata=True)
            siblings = info.siblings or []
            files = {s.rfilename: s.size or 0 for s in siblings}
            require_space(folder, files)
            large = [s for s in siblings if (s.size or 0) > LARGE_BYTES]
            huggingface_hub.snapshot_download(
                source.repository,
                repo_type=source.kind,
                revision=info.sha,
                local_dir=folder,
                endpoint=endpoint,
                token=token,
                ignore_patterns=[glob.escape(s.rfilename) for s in large],
            )
            for sibling in large:
                url = huggingface_hub.hf_hub_url(
                    source.repository,
                    sibling.rfilename,
                    repo_type=source.kind,
                    revision=info.sha,
                    endpoint=endpoint,
                )
                fetch_large(
                    url, folder / sibling.rfilename, token, sibling.lfs.sha256 if sibling.lfs else None
                )
        except GatedRepoError as error:
            raise ConfigError(
                f"{where}: access is not granted; accept the licence on its page, then give a token with --token "
                "or HF_TOKEN"
            ) from error
        except RevisionNotFoundError as error:
            raise ConfigError(f"{where}: has no revision {revision}; leave --revision out") from error
        except RepositoryNotFoundError as error:
            raise ConfigError(
                f"{where}: not found, or not visible without a token; give one with --token or HF_TOKEN"
            ) from error
        except failures as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"{where}: download failed ({reason}); run the command again, it goes on where it stopped"
            ) from error
        wanted |= files
    missing = [name for name, size in wanted.items() if not _is_there(folder / name, size)]
    if missing or not folder.is_dir():
        how = "run `lidargen download` once with a network" if offline else "the repository may have changed"
        raise CheckpointError(f"{folder}: lacks {', '.join(missing) or 'everything'}; {how}")
    return folder


def fetch_large(url: str, target: Path, token: str | None, sha256: str | None) -> None:
    """Fetch one file into ``target``, going on from what an earlier run has left in a hidden file beside it.

    Raises:
        ConfigError: the content does not have the hash that the hub gives; the rest is removed.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    metadata = get_hf_file_metadata(url, token=token)
    if _is_there(target, metadata.size):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    version = hashlib.sha256((metadata.etag or "").encode()).hexdigest()[:16]  # never mix two versions
    part = target.with_name(f".{target.name}.{version}.part")
    location = metadata.location or url
    # The token is for the hub, not for the storage that it redirects to.
    same_host = urlparse(location).netloc == urlparse(url).netloc
    with part.open("ab") as file:
        http_get(
            location,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(token=token) if same_host else {},
            expected_size=metadata.size,
            displayed_filename=target.name,
        )
    if sha256 and file_sha256(part) != sha256:
        part.unlink()
        raise ConfigError(f"{target}: arrived damaged (its sha256 is wrong); run the command again")
    part.replace(target)


def require_space(folder: Path, files: Mapping[str, int]) -> None:
    """``ConfigError`` if the disk cannot take the files (name, bytes) that are not there yet."""
    needed = sum(size for name, size in files.items() if not _is_there(folder / name, size))
    needed -= sum(part.stat().st_size for part in folder.glob("**/.*.part"))
    existing = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed > 0 and free < needed + SPARE_BYTES:
        raise ConfigError(
            f"{folder}: {needed / 1e9:.1f} GB are to be written and {SPARE_BYTES / 1e9:.0f} GB kept free, but "
            f"{existing} has {free / 1e9:.1f} GB; free some space or choose another folder with --out"
        )


def _is_there(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)


def _network_errors() -> tuple[type[Exception], ...]:
    """What the client's HTTP library raises when there is no connection; it has changed that library twice."""
    modules = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return (OSError, *(module.HTTPError for module in modules if module))  # those of requests are OSErrors


def register(app: typer.Typer) -> None:
    """Add ``download`` and ``convert-weights`` to a command-line application."""

    @app.command("download")
    def download_command(
        what: Annotated[
            list[str] | None, typer.Argument(help=f"Any of: {', '.join(SOURCES)}. All of them if left out.")
        ] = None,
        out: Annotated[Path, typer.Option(help="Folder for checkpoints/ and datasets/.")] = Path("."),
        token: Annotated[str | None, typer.Option(envvar="HF_TOKEN", help="Access token of the hub.")] = None,
        revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
        offline: Annotated[bool, typer.Option(help="Only check that all is there.")] = False,
        convert: Annotated[
            bool, typer.Option(help="Also write model.safetensors, which loads faster.")
        ] = False,
    ) -> None:
        """Download the published weights and example data; an interrupted download goes on where it stopped."""
        unknown = sorted(set(what or ()) - SOURCES.keys())
        if unknown:
            raise ConfigError(f"nothing to download is called {', '.join(unknown)}: use {', '.join(SOURCES)}")
        for name in what or SOURCES:
            folder = download(SOURCES[name], out, token, revision, offline)
            typer.echo(f"{name}: {folder}")
            if convert and name == "model":
                from .checkpoints import convert_checkpoint

                typer.echo(f"converted: {convert_checkpoint(folder / 'model.pt', folder)}")

    @app.command("convert-weights")
    def convert_command(
        source: Annotated[
            Path, typer.Argument(help="Checkpoint file or folder; a tokenizer with --tokenizer.")
        ],
        target: Annotated[Path, typer.Argument(help="Folder or .safetensors file to write.")],
        tokenizer: Annotated[bool, typer.Option("--tokenizer", help="The source is a tokenizer.")] = False,
        weights: Annotated[str, typer.Option(help="Of a training run: ema or reg.")] = "ema",
        trust: Annotated[
            bool, typer.Option("--trust", help="Let a TorchScript file run its code if it must.")
        ] = False,
    ) -> None:
        """Convert weights to safetensors once: they load faster, and such a file cannot run code."""
        from .checkpoints import convert_checkpoint
        from .tokenizer_io import convert_tokenizer

        if weights not in ("ema", "reg"):
            raise ConfigError(f"--weights {weights} is unknown: use ema or reg")
        if tokenizer:
            written = convert_tokenizer(
                source, target, ema=weights == "ema" and _has_ema(source), trust=trust
            )
        else:
            written = convert_checkpoint(source, target, kind="ema" if weights == "ema" else "reg")
        typer.echo(f"converted: {written}")


def _has_ema(source: Path) -> bool:
    return source.suffix == ".pt" and source.name.startswith("iter_")
