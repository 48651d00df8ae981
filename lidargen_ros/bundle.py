# SPDX-License-Identifier: Apache-2.0
"""Model bundles: the folder that training and export write and the runtime runs.

    NAME/manifest.json   what it is: family, sensor, rig, preprocessing, sampler defaults, precision, licence, sha256 of files
    NAME/*.onnx, *.safetensors
    NAME/engines/<gpu>-<runtime>-<precision>/
    NAME/metrics.json, README.md (model card)

Nothing of a bundle is loaded before every file has been compared with its hash.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cameras.rig import Rig
from .errors import BundleError
from .files import replacing
from .sensors import Sensor

FORMAT = 1
MANIFEST = "manifest.json"
SHIPPED = Path(__file__).resolve().parent / "bundles"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle; ``manifest`` is the parsed file, ``path`` its folder."""

    path: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def sensor(self) -> Sensor:
        return Sensor.from_dict(self.manifest["sensor"])

    @property
    def rig(self) -> Rig:
        return Rig.from_dict(self.manifest["rig"])

    @property
    def digest(self) -> str:
        """sha256 of the manifest, which holds the hashes of all other files: the identity of the bundle."""
        return file_sha256(self.path / MANIFEST)

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists."""
        if name not in self.manifest["files"]:
            raise BundleError(
                f"bundle {self.path} lists no file {name}; it has {', '.join(sorted(self.manifest['files']))}"
            )
        return self.path / name


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_bundle(name_or_path: str | Path) -> Path:
    """Folder of a bundle: a path, or the name of a shipped one such as ``nano``."""
    path = Path(name_or_path)
    for folder in (path, SHIPPED / path):
        if (folder / MANIFEST).is_file():
            return folder.resolve()
    shipped = sorted(p.parent.name for p in SHIPPED.glob(f"*/{MANIFEST}"))
    raise BundleError(
        f"no bundle at {name_or_path}: no {MANIFEST} there; give a folder that has one, or a shipped name "
        f"({', '.join(shipped) or 'none is shipped'})"
    )


def load_bundle(name_or_path: str | Path, *, verify: bool = True) -> Bundle:
    """Reads a bundle and compares every file with its hash.

    Raises:
        BundleError: missing or altered file, unreadable manifest, or a format this version does not know.
    """
    path = find_bundle(name_or_path)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST} cannot be read: {error}; copy the bundle again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise BundleError(
            f"bundle {path} has format {found}, this version reads {FORMAT}; use a matching lidargen_ros"
        )
    absent = [k for k in ("name", "family", "sensor", "rig", "files") if k not in manifest]
    if absent:
        raise BundleError(f"{path / MANIFEST} lacks {', '.join(absent)}; copy or export the bundle again")
    if verify:
        verify_files(path, manifest["files"])
    return Bundle(path, manifest)


def verify_files(path: Path, files: dict[str, str]) -> None:
    for name, expected in files.items():
        file = path / name
        # A manifest may come from anywhere: it must not make us read outside its own folder.
        if not file.resolve().is_relative_to(path.resolve()):
            raise BundleError(
                f"bundle {path} lists {name}, which lies outside the bundle; do not use this bundle"
            )
        if not file.is_file():
            raise BundleError(f"bundle {path} lacks {name}; copy the bundle again")
        if file_sha256(file) != expected:
            raise BundleError(
                f"bundle {path}: {name} is not the file that the manifest describes (sha256 differs); copy it again"
            )


def write_manifest(path: Path, manifest: dict[str, Any], files: list[str]) -> None:
    """Writes ``manifest.json`` with the hashes of ``files`` (relative names), last and in one step."""
    manifest = {
        "format": FORMAT,
        **manifest,
        "files": {name: file_sha256(path / name) for name in sorted(files)},
    }
    with replacing(path / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1, sort_keys=False) + "\n")
