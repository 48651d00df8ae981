# SPDX-License-Identifier: Apache-2.0
"""`lidargen generate` from pictures and from a clip, alone and split over processes, with small random networks."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
cv2 = pytest.importorskip("cv2")
pytest.importorskip("av")
import typer  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from lidargen_ros.bags.clips import PUBLISHED_VIEWS  # noqa: E402
from lidargen_ros.bags.cloud_files import read_cloud  # noqa: E402
from lidargen_ros.cameras.rig import load_rig  # noqa: E402
from lidargen_ros.errors import LidargenError  # noqa: E402
from lidargen_ros.generate import register  # noqa: E402
from lidargen_ros.models.dit_config import DiTConfig  # noqa: E402
from lidargen_ros.models.dit_denoiser import DiffusionModel  # noqa: E402
from lidargen_ros.models.download import register as register_download  # noqa: E402
from lidargen_ros.models.tokenizer_codec import build_network  # noqa: E402
from lidargen_ros.models.tokenizer_config import NO, SPACE, SPACE_TIME, TokenizerConfig  # noqa: E402
from lidargen_ros.sensors import Sensor, load_sensor  # noqa: E402

CLIP = "0c5a9e21-7d34-11ef-9b6e-00044bf65c02_1712345678000000_1712345679000000"
SIZES = {
    "lidar_latent": [64, 6],
    "camera_latent": [6, 10],
    "resize_hw": [50, 80],
    "sensor": {"base": "pandar128", "name": "small", "columns": 50},
}


def save_tokenizer(folder, kind):
    folder.mkdir(parents=True)
    down, up = (SPACE, SPACE) if kind == "image" else (SPACE_TIME, SPACE_TIME)
    config = TokenizerConfig(
        kind=kind,
        channels=32,
        channels_mult=(1, 1),
        num_res_blocks=1,
        num_groups=32 if kind == "image" else 1,
        encoder_attention=(False, False),
        decoder_attention=(False, False),
        down=(down, NO),
        up=(NO, up),
    )
    torch.save({"model": build_network(config).state_dict()}, folder / "autoencoder.pt")
    torch.save((torch.zeros(16), torch.full((16,), 0.5)), folder / "mean_std.pt")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as `lidargen download` leaves it, with small networks of random weights."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("checkpoints")
    folder = root / "Cosmos-Transfer-LidarGen"
    save_tokenizer(folder / "Cosmos-Tokenize1-CV8x8x8-720p-image", "video")
    save_tokenizer(root / "Cosmos-Tokenizer-CI8x8-Lidar", "image")
    model = DiffusionModel(DiTConfig(width=24, heads=2, blocks=2, adaln_width=4, text_width=8))
    model.net.init_weights()
    torch.save(model.bfloat16().state_dict(), folder / "model.pt")
    (folder / "pipeline.json").write_text(json.dumps(SIZES))
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    writer = pytest.importorskip("training.data.clips_writer")
    root, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    rig = load_rig("published")
    vectors = {
        name: view.camera.to_dict()["vector"] for name, view in zip(PUBLISHED_VIEWS, rig.views, strict=True)
    }
    sensor = load_sensor("pandar128_3600")
    with writer.ClipWriter(root, CLIP, sensor, vectors) as clip:
        for frame in range(0, 13, 3):
            ranges = rng.uniform(3, 90, sensor.shape) * (rng.random(sensor.shape) < 0.02)
            start = 1712345678000000 + frame * 33333
            clip.add_spin(frame, ranges, np.stack([np.eye(4)] * 2), (start, start + 100000))
        for frame in range(13):
            for name, view in zip(PUBLISHED_VIEWS, rig.views, strict=True):
                clip.add_image(name, rng.integers(0, 256, (90, 160, 3), dtype=np.uint8))
                clip.add_camera_pose(name, frame, view.camera_to_lidar)
        clip.finish()
    return root


@pytest.fixture
def pictures(tmp_path):
    rng, paths = np.random.default_rng(1), []
    for name in ("front", "rear_left", "rear_right"):
        paths.append(tmp_path / f"{name}.png")
        cv2.imwrite(str(paths[-1]), rng.integers(0, 256, (90, 160, 3), dtype=np.uint8))
    return [str(path) for path in paths]


def command(checkpoint, out, arguments):
    fixed = ["--checkpoint", checkpoint, "--out", out, "--device", "cpu", "--ddim_iters", 2]
    return [str(word) for word in (*fixed, *arguments)]


def run(checkpoint, out, *arguments):
    """In this process, through the command-line application."""
    app = typer.Typer()
    register(app)
    register_download(app)
    return CliRunner().invoke(app, ["generate", *command(checkpoint, out, arguments)])


def start(launcher, checkpoint, out, *arguments):
    """In processes of its own."""
    words = [sys.executable, *launcher, "lidargen_ros.generate", *command(checkpoint, out, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, env=env, timeout=280, check=False)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_from_pictures(checkpoint, pictures, tmp_path):
    out = tmp_path / "out"
    result = start(["-m"], checkpoint, out, "--images", *pictures, "--save-latent")
    assert result.returncode == 0, result.stderr
    assert "1 of 1 frames written" in result.stdout
    assert sorted(p.name for p in out.iterdir()) == [
        f"front{s}" for s in (".jpg", ".latent.npz", ".npz", ".pcd", ".ply")
    ]
    with np.load(out / "front.npz") as stored:
        ranges, facts = stored["range_map"], json.loads(str(stored["generator"]))
        sensor = Sensor.from_dict(json.loads(str(stored["sensor"])))
    assert ranges.shape == sensor.shape == (128, 50)
    assert facts["mode"] == "corrected"
    assert facts["steps"] == 2
    seen = ranges > 0
    assert seen.any()
    points = sensor.directions()[seen] * ranges[seen][:, None]
    np.testing.assert_allclose(read_cloud(out / "front.pcd").points, points, atol=1e-5)
    header, body = (out / "front.ply").read_bytes().split(b"end_header\n")
    assert f"element vertex {len(points)}".encode() in header
    np.testing.assert_allclose(np.frombuffer(body, "<f4").reshape(-1, 3), points, atol=1e-5)
    picture = cv2.imread(str(out / "front.jpg"))
    assert picture.shape[1] == 1920
    assert picture.std() > 5
    with np.load(out / "front.latent.npz") as stored:
        assert stored["latent"].shape == (1, 16, 1, 64, 6)


def test_options_count(checkpoint, pictures, tmp_path):
    base = ["--images", *pictures]
    assert run(checkpoint, tmp_path / "a", *base, "--near_buffer", 20, "--far_buffer", 20).exit_code == 0
    assert run(checkpoint, tmp_path / "b", *base, "--filter_outlier", "--seed", 5).exit_code == 0
    assert run(checkpoint, tmp_path / "c", *base, "--mode", "reference", "--guidance", 1).exit_code == 0
    maps = {}
    for name in "abc":
        with np.load(tmp_path / name / "front.npz") as stored:
            maps[name] = stored["range_map"], json.loads(str(stored["generator"]))
    ranges = maps["a"][0][maps["a"][0] > 0]
    assert ranges.min() > 25
    assert ranges.max() < 80
    assert maps["b"][1]["seed"] == 5
    assert maps["b"][1]["filter_outlier"]
    assert maps["c"][0].shape == (128, 48)  # the crop, stretched over the turn
    assert maps["c"][1]["guidance"] == 1


def test_a_clip_gives_the_same_files_however_many_processes(checkpoint, clips, tmp_path):
    arguments = ["--data", clips, "--clip", CLIP, "--frames", "0,0,3:13:3", "--save-latent"]
    alone = run(checkpoint, tmp_path / "alone", *arguments)
    assert alone.exit_code == 0, alone.output
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "-m")
    split = start(launcher, checkpoint, tmp_path / "split", *arguments)
    assert split.returncode == 0, split.stderr
    expected = contents(tmp_path / "alone")
    assert len(expected) == 5 * 5
    assert contents(tmp_path / "split") == expected
    stamps = []
    for frame in range(0, 13, 3):
        with np.load(tmp_path / "alone" / f"{CLIP}_{frame:06d}.npz") as stored:
            stamps.append(int(stored["stamp_ns"]))
    assert stamps == [(1712345678000000 + frame * 33333) * 1000 for frame in range(0, 13, 3)]


def test_an_error_is_one_line(checkpoint, tmp_path):
    result = start(["-m"], checkpoint, tmp_path / "out", "--mode", "best", "--clip", CLIP, "--data", tmp_path)
    assert result.returncode == 1
    assert result.stderr == "error: mode 'best' is unknown: use reference or corrected\n"


def test_results_that_cannot_be_written(checkpoint, pictures, tmp_path):
    result = run(checkpoint, pictures[0], "--images", *pictures)
    assert isinstance(result.exception, LidargenError)
    assert str(result.exception).startswith(f"{pictures[0]}: File exists; ")


def test_a_tokenizer_without_its_statistics_is_refused_before_the_sampling(checkpoint, pictures, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "autoencoder.pt").write_bytes(
        (checkpoint.parent / "Cosmos-Tokenizer-CI8x8-Lidar" / "autoencoder.pt").read_bytes()
    )
    result = run(checkpoint, tmp_path / "out", "--images", *pictures, "--lidar_tokenizer", tokenizer)
    assert str(result.exception).startswith(f"{tokenizer}: lacks mean_std.pt")
    assert not list((tmp_path / "out").iterdir())


def test_tokenizers_in_the_wrong_place(checkpoint, pictures, tmp_path):
    camera = checkpoint / "Cosmos-Tokenize1-CV8x8x8-720p-image"
    result = run(checkpoint, tmp_path, "--images", *pictures, "--lidar_tokenizer", camera)
    assert str(result.exception).startswith(
        f"{camera}: is of the video family; cameras need a video tokenizer"
    )


def test_resume(checkpoint, clips, tmp_path):
    arguments = ["--data", clips, "--clip", "all", "--frames", "0:4:3"]
    assert run(checkpoint, tmp_path, *arguments).exit_code == 0
    kept = tmp_path / f"{CLIP}_000000.npz"
    (tmp_path / f"{CLIP}_000003.npz").unlink()
    before = kept.stat().st_mtime_ns
    result = run(checkpoint, tmp_path, *arguments, "--resume")
    assert "1 of 2 frames written" in result.output
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "a.png", "b.png", "c.png"], "picture a.png does not exist"),
        ([], "give either --images"),
        (["--clip", CLIP], "--clip needs --data"),
        (["--data", "{clips}", "--clip", CLIP, "--frames", "1"], "no complete frame 1"),
        (["--data", "{clips}", "--clip", CLIP, "--frames", "x"], "--frames 'x' is not understood"),
        (["--data", "{clips}", "--clip", CLIP, "--frames", "0:9:0"], "--frames '0:9:0' is not understood"),
        (["--data", "{clips}", "--clip", CLIP, "--frames", "3:3"], "--frames 3:3 picks none"),
        (["--images", "a.png", "b.png", "--seed", "1"], "followed by 2 pictures and --seed: give 3"),
        (["--images", "a.png", "--seed", "1"], "followed by 1 pictures and --seed: give 3"),
        (["--data", "{clips}", "--clip", CLIP, "--n_views", "4"], "has 3 cameras"),
        (["--data", "{clips}", "--clip", CLIP, "--mode", "best"], "use reference or corrected"),
        (["--data", "{clips}", "--clip", CLIP, "--steps", "0"], "at least 1"),
    ],
)
def test_wrong_use(checkpoint, clips, tmp_path, arguments, message):
    result = run(checkpoint, tmp_path / "out", *(a.format(clips=clips) for a in arguments))
    assert isinstance(result.exception, LidargenError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()
