# SPDX-License-Identifier: Apache-2.0
"""Clips by sample number: order, splits, what is kept on disk, and the batches of a student from clips."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("av")
from toy_clip import CLIP, npz, rewrite  # noqa: E402
from toy_clips import HELD_OUT, LIDAR, write_clips  # noqa: E402

from lidargen_ros.cameras.align import align, atlas  # noqa: E402
from lidargen_ros.errors import ConfigError, DataError  # noqa: E402
from lidargen_ros.models.student_graphs import look_up  # noqa: E402
from lidargen_ros.sensors import Sensor  # noqa: E402
from training.data.cache import TensorCache  # noqa: E402
from training.data.order import Shuffled  # noqa: E402
from training.data.splits import ClipData, open_splits, sensor_of, spread  # noqa: E402
from training.scenes.seeds import EVALUATION_SEEDS  # noqa: E402
from training.student.clips import ClipStream, on_grid  # noqa: E402

TILE, HYPOTHESES, HEIGHT = (48, 80), ("ground", 10.0), 1.9


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


def stream(clips, sensor=LIDAR, **options):
    frames = open_splits(ClipData(str(clips)))
    return ClipStream(*frames, sensor, tile=TILE, hypotheses=HYPOTHESES, lidar_height=HEIGHT, **options)


def test_each_pass_is_another_order_of_all_items():
    order = Shuffled(7, seed=3)
    passes = [[order[7 * k + i] for i in range(7)] for k in range(4)]
    assert all(sorted(p) == list(range(7)) for p in passes)
    assert len({tuple(p) for p in passes}) > 1
    assert [Shuffled(7, seed=3)[n] for n in (20, 5, 13)] == [passes[2][6], passes[0][5], passes[1][6]]
    assert [Shuffled(7, seed=4)[n] for n in range(7)] != passes[0]


def test_what_is_kept_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T}

    cache = TensorCache(tmp_path / "deep")
    first, second = cache("x", make), cache("x", make)
    assert len(made) == 1
    assert torch.equal(first["a"], second["a"])
    (tmp_path / "deep" / "x.safetensors").write_bytes(b"broken")
    with pytest.raises(DataError, match="remove it"):
        cache("x", make)
    assert torch.equal(TensorCache(None)("x", make)["a"], first["a"])
    assert len(made) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clips": ""}, "data.clips is ''"),
        ({"clips": "nowhere"}, "training.data.synthesize"),
        ({"val_split": "test"}, "test.lst does not exist"),
        ({"split": "empty"}, "empty.lst is empty"),
    ],
)
def test_splits_that_are_not_there(clips, settings, message):
    (clips / "empty.lst").write_text("\n")
    with pytest.raises(ConfigError, match=message):
        open_splits(ClipData(**{"clips": str(clips), **settings}))


def test_splits(clips):
    training, held_out = open_splits(ClipData(str(clips)))
    assert (training.clips.names, held_out.clips.names) == ([CLIP], [HELD_OUT])
    assert len(open_splits(ClipData(str(clips), split="all"))[0].clips.names) == 2
    listed = str(clips / "val.lst")
    assert open_splits(ClipData(str(clips), split=listed))[0].clips.names == [HELD_OUT]
    assert sensor_of("clips", training) == LIDAR
    assert list(spread(10, 4)) == [0, 2, 5, 7]
    assert list(spread(2, 4)) == [0, 1]


def test_a_batch_is_what_the_runtime_would_see(clips):
    data = stream(clips)
    seeds = torch.arange(EVALUATION_SEEDS.start, EVALUATION_SEEDS.start + 3)
    batch = data(seeds)
    frames = [data.validation[data._shown[k]] for k in range(3)]
    for k, frame in enumerate(frames):
        maps = align(frame.rig, LIDAR, tile=TILE, hypotheses=HYPOTHESES, lidar_height=HEIGHT)
        inputs = (torch.from_numpy(a)[None] for a in (atlas(frame.images, TILE), maps.grid, maps.mask))
        assert (batch.pixels[k] - look_up(*inputs)[0]).abs().max() <= 1 / 127  # colours are rounded to 8 bit
        assert np.array_equal(batch.rays[k], maps.rays)
        assert np.array_equal(batch.target.range_m[k], frame.range_map)
        assert np.array_equal(batch.target.intensity[k], frame.intensity)
        assert np.array_equal(batch.seen[k], maps.seen)
    assert 0.3 < batch.seen.float().mean() < 0.9


def test_samples_depend_on_their_number_alone(clips, tmp_path):
    data, kept = stream(clips, drop=0.5, seed=1), stream(clips, drop=0.5, seed=1, cache=tmp_path)
    whole = data(torch.arange(6))
    parts = [kept(torch.arange(first, first + 2)) for first in (4, 0, 2)]  # in another order, through files
    for name in ("pixels", "rays", "seen"):
        joined = torch.cat([getattr(parts[i], name) for i in (1, 2, 0)])
        assert torch.equal(getattr(whole, name), joined)
    every_camera = data(torch.arange(6), exact_only=True)
    seeing = [batch.pixels[:, 3::4].sum(dim=(1, 2, 3)) for batch in (whole, every_camera)]
    assert 0 < int((seeing[0] < seeing[1]).sum()) < 6  # in some samples, not in all, a camera is missing


def test_frames_that_cannot_be_read_are_left_out(tmp_path):
    write_clips(tmp_path)
    name = f"{CLIP}.000002.lidar_range.npz"
    rewrite(
        tmp_path / "lidar" / f"{CLIP}.tar", lambda c: c.update({name: npz(arr_0=np.zeros(1, np.float16))})
    )
    data = stream(tmp_path)
    assert len(data(torch.arange(3)).pixels) == 2
    broken = next(n for n in range(3) if data.training.items[data._order[n]][1] == "000002")
    with pytest.raises(DataError, match="all 1 frames of a batch failed"):
        data(torch.tensor([broken]))


def test_a_sweep_on_another_grid():
    rng = np.random.default_rng(0)
    ranges = (rng.uniform(5, 70, LIDAR.shape) * (rng.random(LIDAR.shape) < 0.8)).astype(np.float32)
    intensity = rng.random(LIDAR.shape, np.float32)
    same, values = on_grid(ranges, intensity, LIDAR, LIDAR)
    assert np.array_equal(same, ranges)
    assert np.array_equal(values[ranges > 0], intensity[ranges > 0])
    half, _ = on_grid(ranges, None, LIDAR, LIDAR.with_columns(72))
    pairs = np.where(ranges > 0, ranges, np.inf).reshape(16, 72, 2).min(axis=2)
    assert np.array_equal(half, np.where(np.isfinite(pairs), pairs, 0))
    fewer = Sensor("fewer", LIDAR.elevations_deg[::2], 36, max_range_m=60.0)
    other, _ = on_grid(ranges, intensity, LIDAR, fewer)
    assert other.shape == (8, 36)
    assert 0 < other.max() <= 60
    near = np.where(ranges > 0, ranges, np.inf)
    assert (other[other > 0][:, None] == near[ranges > 0]).any(axis=1).mean() > 0.99
    more_rows = Sensor("more rows", np.linspace(8, -20, 32), 144)
    for finer in (LIDAR.with_columns(288), more_rows):
        with pytest.raises(ConfigError, match="not finer"):
            on_grid(ranges, None, LIDAR, finer)


def test_a_sensor_that_no_student_takes(clips):
    with pytest.raises(ConfigError, match="columns of 36"):
        stream(clips, LIDAR.with_columns(100))
