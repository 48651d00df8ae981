# SPDX-License-Identifier: Apache-2.0
"""Graphs without weights for bundles that were exported before there were any."""

import json
import shutil

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from export import device_graphs
from lidargen_ros.bundle import MANIFEST, SHIPPED, load_bundle, write_manifest
from lidargen_ros.frame_pipeline import DEVICE_GRAPHS


@pytest.fixture
def older(tmp_path):
    """The bundle ``constant`` without them."""
    folder = shutil.copytree(SHIPPED / "constant", tmp_path / "older")
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["format"]
    for graph in DEVICE_GRAPHS:
        if manifest["files"].pop(f"{graph}.onnx", None):
            (folder / f"{graph}.onnx").unlink()
    write_manifest(folder, manifest, list(manifest.pop("files")))
    return folder


@pytest.mark.slow
def test_a_bundle_gains_them_and_nothing_else_changes(older, capsys):
    assert device_graphs.main([str(older)]) == 0
    assert capsys.readouterr().out.count("relative error 0.0e+00") >= 3
    now, shipped = (load_bundle(path).manifest for path in (older, "constant"))
    assert now["files"].keys() == shipped["files"].keys()
    unchanged = {"encoder.onnx", "denoiser.onnx", "decoder.onnx", "metrics.json", "README.md"}
    assert all(now["files"][name] == shipped["files"][name] for name in unchanged)
    assert {**now, "files": {}} == {**shipped, "files": {}}


def test_bundles_that_cannot_have_them(older, capsys, monkeypatch):
    def said():
        assert device_graphs.main([str(older)]) == 1
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    with monkeypatch.context() as patch:
        patch.setattr(device_graphs, "export_device_graphs", refuse)
        assert "copy the bundle to where it can be written" in said()
    manifest = json.loads((older / MANIFEST).read_text())
    (older / MANIFEST).write_text(json.dumps(manifest | {"family": "published"}))
    assert "is of family published; only students" in said()
    (older / MANIFEST).unlink()
    assert "no bundle at" in said()


def refuse(folder, *_):
    raise PermissionError(13, "Permission denied", str(folder / "yuv422.onnx"))
