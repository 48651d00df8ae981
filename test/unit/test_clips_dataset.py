# SPDX-License-Identifier: Apache-2.0
"""Data sets over clips: nothing is replaced, failures are named and counted, workers share nothing."""

import pickle

import numpy as np
import pytest
from toy_clip import CLIP, npz, rewrite, write_clip

from lidargen_ros.bags.clips import ClipFiles, ClipReader
from lidargen_ros.bags.video import OpenFiles, VideoReader
from lidargen_ros.errors import DataError

torch = pytest.importorskip("torch")
pytest.importorskip("av")

from training.data.dataset import Failure, FrameDataset, PublishedDataset, collate  # noqa: E402

CAMERA = "camera_front_wide_120fov"
OTHER = CLIP.replace("da1b2c3d", "1a1b2c3d")


@pytest.fixture
def root(tmp_path):
    write_clip(tmp_path, CLIP, cameras=(CAMERA,))
    write_clip(tmp_path, OTHER, spins=2, cameras=(CAMERA,))
    return tmp_path


def break_spin(root, clip, frame):
    name = f"{clip}.{frame:06d}.lidar_range.npz"
    rewrite(root / "lidar" / f"{clip}.tar", lambda c: c.update({name: npz(arr_0=np.zeros(1, np.float16))}))


def test_every_frame_in_order(root):
    dataset = FrameDataset(root, cameras=(CAMERA,))
    assert len(dataset) == 5
    items = [dataset[i] for i in range(len(dataset))]
    assert [(item.clip, item.frame) for item in items] == [
        (OTHER, "000000"), (OTHER, "000002"), (CLIP, "000000"), (CLIP, "000002"), (CLIP, "000004"),
    ]  # fmt: skip
    assert items[0].images[0].shape == (96, 160, 3)
    assert items[0].range_map.shape == items[0].sensor.shape
    assert items[0].rig.views[0].name == CAMERA


def test_a_broken_item_is_named_and_never_replaced(root):
    break_spin(root, CLIP, 2)
    dataset = FrameDataset(root, cameras=())
    failure = dataset[3]
    assert isinstance(failure, Failure)
    assert failure.clip == CLIP
    assert f"{CLIP}.000002" in failure.reason
    assert dataset[4].frame == "000004"
    with pytest.raises(DataError, match=f"{CLIP}.000002"):
        FrameDataset(root, cameras=(), strict=True)[3]


def test_a_broken_clip_is_named_and_counted(root):
    (root / "lidar" / f"{CLIP}.tar").write_bytes(b"broken")
    dataset = FrameDataset(root, cameras=())
    assert list(dataset.clips.failed) == [CLIP]
    assert CLIP in dataset.clips.failed[CLIP]
    assert {clip for clip, _ in dataset.items} == {OTHER}
    with pytest.raises(DataError, match=CLIP):
        FrameDataset(root, cameras=(), strict=True)
    (root / "lidar" / f"{OTHER}.tar").write_bytes(b"broken")
    with pytest.raises(DataError, match="none of 2 clips"):
        FrameDataset(root, cameras=())


def published(root, **options):
    # The toy sensor has 360 columns: 180 after reduction.
    return PublishedDataset(root, cameras=(), **{"crop_width": 160, **options})


def test_draws_depend_on_seed_epoch_and_item_alone(root):
    one, two = published(root, frames=8, seed=3), published(root, frames=8, seed=3)
    first = one[0]["rgb_frame_indices"]
    assert two[0]["rgb_frame_indices"] == first
    two.set_epoch(1)
    assert two[0]["rgb_frame_indices"] != first
    everything = {name for _ in range(3) for name in one[1]["rgb_frame_indices"]}
    assert everything <= {"000000", "000002", "000004"}
    last = any("000004" in published(root, frames=8, seed=s)[1]["rgb_frame_indices"] for s in range(3))
    assert last  # the published loader never gives the last spin


def test_sequential_frames(root):
    item = published(root, frames=2, step=2, sampling="sequential")[1]
    assert item["rgb_frame_indices"] == ["000000", "000004"]
    assert published(root, frames=2, sampling="sequential_from_zero")[1]["rgb_frame_indices"] == [
        "000000",
        "000002",
    ]
    failure = published(root, frames=3, sampling="sequential")[0]
    assert isinstance(failure, Failure)
    assert "2 frames, 3" in failure.reason


def test_narrow_crops_are_drawn(root):
    starts = set()
    for seed in range(4):
        video = published(root, crop_width=100, seed=seed, frames=1, sampling="sequential_from_zero")[0][
            "video"
        ]
        assert video.shape == (3, 1, 60, 100)
        assert torch.equal(video[0], video[2])
        starts.add(video.numpy().tobytes())
    assert len(starts) > 1
    assert published(root, crop_width=-1)[0]["video"].shape == (3, 1, 60, 180)


def test_batches_leave_failures_out_and_list_them(root):
    break_spin(root, OTHER, 0)
    dataset = published(root, sampling="sequential_from_zero")
    batch = collate([dataset[0], dataset[1]])
    assert batch["__key__"] == [CLIP]
    assert batch["video"].shape[0] == 1
    assert len(batch["failed"]) == 1
    assert OTHER in batch["failed"][0]
    with pytest.raises(DataError, match="all 1 items"):
        collate([dataset[0]])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_workers_give_the_same_batches(root, method):
    dataset = FrameDataset(root, cameras=(CAMERA,))
    here = [dataset[i] for i in range(len(dataset))]  # leaves decoders open when workers fork
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context=method, collate_fn=None
    )
    for mine, theirs in zip(here, loader, strict=True):
        assert mine.frame == theirs.frame
        np.testing.assert_array_equal(mine.images[0], theirs.images[0])
        np.testing.assert_array_equal(mine.range_map, theirs.range_map)


def test_few_files_stay_open(root):
    files = ClipFiles()
    files.videos = OpenFiles(VideoReader, capacity=1)
    readers = [ClipReader(root, name, (CAMERA,), files) for name in (CLIP, OTHER)]
    for _ in range(2):
        for reader in readers:
            assert reader.image("000002", CAMERA).shape == (96, 160, 3)
            assert len(files.videos._open) == 1
    copy = pickle.loads(pickle.dumps(files.videos))
    assert len(copy._open) == 0
