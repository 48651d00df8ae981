# SPDX-License-Identifier: Apache-2.0
"""Samples and batches against those of the published data loader."""

import json
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("av")

from training.data.dataset import PublishedDataset, collate  # noqa: E402


@pytest.fixture(scope="module")
def schema(golden):
    return json.loads(golden("geometry/clip_sample_schema.json").read_text())


@pytest.fixture(scope="module")
def sample(golden, schema):
    root = golden("geometry/clip")
    dataset = PublishedDataset(
        root,
        root / "split.lst",
        frames=schema["sample"]["num_frames"][2],
        sampling="sequential_from_zero",
        strict=True,
    )
    return dataset[0]


def kind(value):
    if isinstance(value, torch.Tensor):
        return ["Tensor", list(value.shape), str(value.dtype)]
    if isinstance(value, np.ndarray):
        return ["ndarray", list(value.shape), str(value.dtype)]
    return [type(value).__name__, None, value]


def test_sample_has_the_published_keys_types_and_values(sample, schema):
    assert {key: kind(value) for key, value in sample.items()} == schema["sample"]


def test_batch_of_one(sample, schema):
    batch = collate([sample])
    assert batch.keys() == schema["batch_of_one"].keys()
    for key, (name, shape, dtype) in schema["batch_of_one"].items():
        found = kind(batch[key])
        assert found[:2] == [name, shape], key
        if shape is not None:
            assert found[2] == dtype, key


def test_sample_content(sample, golden):
    v = np.load(golden("geometry/clip_expected.npz"))
    key = next(k for k in v if re.fullmatch(r"video_frame\d+_rows", k))
    number = int(re.search(r"\d+", key)[0])
    video = sample["video"].numpy()
    repeat = video.shape[2] // v[key].shape[0]
    for channel in range(3):
        for row in range(repeat):
            rows = video[channel, number, row::repeat]
            np.testing.assert_allclose(rows, v[key], rtol=0, atol=5e-7)
    sums = video[0].sum(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(sums, v["video_frame_sums"], rtol=1e-6, atol=1.0)
    np.testing.assert_array_equal(sample["timestamp_list"], v["timestamp_list"])
    for i in range(sample["num_views"]):
        image = sample[f"image_rgb_{i}"].numpy()
        stride = image.shape[-1] // v[f"image_rgb_{i}_stride16"].shape[-1]
        np.testing.assert_allclose(
            image[:, :, ::stride, ::stride], v[f"image_rgb_{i}_stride16"], rtol=0, atol=1e-4
        )
        np.testing.assert_allclose(image.mean(axis=(0, 2, 3)), v[f"image_rgb_{i}_mean"], rtol=0, atol=1e-4)
        poses = sample[f"camera_c2lidar_transform_{i}"].numpy()
        np.testing.assert_allclose(poses, v[f"camera_c2lidar_{i}"], rtol=0, atol=2e-5)
