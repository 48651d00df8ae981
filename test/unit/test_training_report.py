# SPDX-License-Identifier: Apache-2.0
"""The report of a run: every number of the curve, whatever happened to its last line."""

import json

import cv2
import numpy as np
import pytest

from lidargen_ros.errors import DataError
from lidargen_ros.pictures import save_picture
from training.report import curves_picture, last_pictures, read_curve, series, write_report


def write_curve(folder, rows, tail=""):
    (folder / "curve.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + tail)


def rows(count=60):
    found = [{"samples": 8 * i, "seconds": i / 2, "loss": 2.0 / (1 + i)} for i in range(count)]
    found[count // 2]["eval/mae_m"] = 3.25
    return found


def test_report_of_a_run(tmp_path):
    write_curve(tmp_path, rows(), '{"samples": 480, "lo')
    (tmp_path / "config.yaml").write_text("kind: published\n")
    for name in ("000000080_a", "000000480_a", "000000480_b"):
        save_picture(tmp_path / "pictures" / f"{name}.jpg", np.zeros((8, 8, 3), np.uint8))
    text = write_report(tmp_path).read_text()
    assert "472 samples in 30 s" in text
    assert "| loss | 2 | 0.03333 | 2 | 0.03333 | 472 |" in text
    assert "| eval/mae_m | 3.25 | 3.25 | 3.25 | 3.25 | 240 |" in text
    assert "kind: published" in text
    assert "pictures/000000480_b.jpg" in text
    assert "pictures/000000080_a.jpg" not in text
    assert [path.stem for path in last_pictures(tmp_path)] == ["000000480_a", "000000480_b"]
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 5


def test_only_a_last_line_may_be_cut_off(tmp_path):
    write_curve(tmp_path, rows(3), '{"sam')
    assert len(read_curve(tmp_path)) == 3
    (tmp_path / "curve.jsonl").write_text('{"sam\n{"samples": 1, "seconds": 0, "loss": 1}\n')
    with pytest.raises(DataError, match="line 1 is damaged"):
        read_curve(tmp_path)


def test_nothing_to_report(tmp_path):
    with pytest.raises(DataError, match="give the folder of a training run"):
        write_report(tmp_path)
    write_curve(tmp_path, [{"samples": 1, "seconds": 0, "loss": float("nan")}])
    with pytest.raises(DataError, match="holds no numbers"):
        write_report(tmp_path)


def test_a_line_goes_down_where_the_number_falls():
    falling = np.stack([np.arange(20.0), np.linspace(1, 0, 20)], axis=1)
    picture = curves_picture({"loss": falling}).astype(int)
    blue = np.argwhere(picture[36:-30, 70:420, 2] > 200)
    left, right = blue[blue[:, 1] < 100, 0], blue[blue[:, 1] > 250, 0]
    assert right.mean() > left.mean() + 50  # pictures count rows downwards


def test_points_that_are_not_finite_are_left_out():
    (points,) = series([{"samples": 1, "loss": float("inf")}, {"samples": 2, "loss": 3.0}]).values()
    assert points.tolist() == [[2.0, 3.0]]
