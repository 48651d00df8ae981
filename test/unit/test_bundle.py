# SPDX-License-Identifier: Apache-2.0
"""Bundles: nothing is loaded that is missing, altered or outside."""

import json
import shutil

import pytest

from lidargen_ros.bundle import MANIFEST, SHIPPED, load_bundle
from lidargen_ros.errors import BundleError


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(SHIPPED / "constant", tmp_path / "constant")


def test_a_shipped_bundle_is_found_by_name_and_by_path(copy):
    assert load_bundle("constant").digest == load_bundle(copy).digest
    assert load_bundle(copy).sensor.shape == (128, 1800)
    assert len(load_bundle(copy).rig) == 3


def test_an_altered_file_is_refused_by_name(copy):
    with (copy / "denoiser.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"x")
    with pytest.raises(BundleError, match=r"denoiser\.onnx.*sha256"):
        load_bundle(copy)


def test_a_missing_file_is_refused_by_name(copy):
    (copy / "encoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks encoder\.onnx"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "format 99"),
        ({"files": {"../outside": "0"}}, "outside the bundle"),
        ({"files": {"/etc/hostname": "0"}}, "outside the bundle"),
    ],
)
def test_a_manifest_that_cannot_be_trusted(copy, change, words):
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(manifest | change))
    with pytest.raises(BundleError, match=words):
        load_bundle(copy)


def test_a_cut_manifest_and_an_unknown_name(copy):
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text[: len(text) // 2])
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(copy)
    with pytest.raises(BundleError, match="constant"):
        load_bundle("no_such_bundle")
