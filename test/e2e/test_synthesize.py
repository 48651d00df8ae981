# SPDX-License-Identifier: Apache-2.0
"""`lidargen synthesize`: every kind of bag in, the same bytes out whoever works and however often it is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml
from camera_bags import (
    CAMERAS,
    KINDS,
    MS,
    OWN,
    PERIOD,
    START,
    Event,
    changed,
    expected,
    pictures,
    sweeps,
    write_bag,
)
from typer.testing import CliRunner

pytest.importorskip("onnx", reason="the toy bundle is made with onnx")
from toy_bundle import write_bundle

from lidargen_ros.bags.reader import BagReader
from lidargen_ros.bags.synthesis.command import register
from lidargen_ros.errors import LidargenError
from lidargen_ros.frame_pipeline import FramePipeline

app = typer.Typer()
register(app)
ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ("--inference-engine", "onnxruntime-cpu", "--threads", "1", "--slice", "0.5")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture
def run(bundle, tmp_path):
    """Runs the command on bags; returns (exit code, summary or the error)."""

    def synthesize(*bags, out=tmp_path / "out", options=()):
        arguments = [*map(str, bags), "--out", str(out), "--bundle", str(bundle), "--json"]
        result = CliRunner().invoke(app, [*arguments, *OPTIONS, *options])
        if isinstance(result.exception, LidargenError):
            return 1, str(result.exception)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, json.loads(result.stdout) if result.stdout.startswith("{") else result.output

    return synthesize


def files(bag: Path) -> dict[str, bytes]:
    """What must be the same: everything but the summary, which tells the time it took."""
    return {p.name: p.read_bytes() for p in bag.iterdir() if p.name != "synthesis.json"}


def raw(path: Path, topics) -> list:
    with BagReader(path) as bag:
        return [(m.topic, m.msgtype, m.time_ns, m.raw) for m in bag.messages(topics)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_bag(kind, run, tmp_path) -> None:
    code, summary = run(write_bag(tmp_path / "drive", pictures(12), kind))
    assert code == 0
    assert (summary["made"], summary["frames_in"], summary["sweeps_out"], summary["unmatched"]) == (
        1,
        12,
        12,
        0,
    )
    out = tmp_path / "out" / "drive"
    assert sweeps(out) == expected(12)
    with BagReader(out) as bag:
        assert {t.name: (t.count, t.qos[0].durability.name) for t in bag.topics.values()} == {
            "/points": (12, "VOLATILE"),
            "/range_image": (12, "VOLATILE"),
            "/intensity_image": (12, "VOLATILE"),
            "/metadata": (1, "TRANSIENT_LOCAL"),
        }
        about = json.loads(next(bag.messages(["/metadata"])).decode().data)
    assert (about["model"]["model"], about["sensor"]["name"], about["frame_id"]) == ("toy", "toy", "lidar")
    assert sorted(p.name for p in out.iterdir()) == ["drive.mcap", "metadata.yaml", "synthesis.json"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["drive", "summary.json"]


def test_raw_images_and_a_split_bag(run, tmp_path) -> None:
    events = [e._replace(topic=e.topic.replace("/compressed", "")) for e in pictures(12)]
    parts = [
        write_bag(tmp_path / f"p{i}", half, image_type="sensor_msgs/msg/Image")
        for i, half in enumerate((events[:20], events[20:]))
    ]
    split = tmp_path / "split"
    split.mkdir()
    for i, part in enumerate(parts):
        shutil.copy(part / f"p{i}.mcap", split / f"split_{i}.mcap")
    about, more = (
        yaml.safe_load((part / "metadata.yaml").read_text())["rosbag2_bagfile_information"] for part in parts
    )
    about["relative_file_paths"] = ["split_0.mcap", "split_1.mcap"]
    about["message_count"] += more["message_count"]
    about["duration"]["nanoseconds"] += more["duration"]["nanoseconds"] + PERIOD
    for topic, rest in zip(*(m["topics_with_message_count"] for m in (about, more)), strict=True):
        topic["message_count"] += rest["message_count"]
    (split / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": about}))
    assert run(split)[0] == 0
    assert sweeps(tmp_path / "out" / "split") == expected(12)


def test_raw_images_reach_an_engine_that_converts_them_as_they_were_recorded(
    run, tmp_path, monkeypatch
) -> None:
    given = []

    def takes_bgr(
        pipeline, *arguments
    ) -> None:  # as if the engine had the graphs; without them the host converts
        original(pipeline, *arguments)
        pipeline.raw_encodings = frozenset({"rgb8", "bgr8"})

    def noted(pipeline, images) -> tuple[str, ...]:
        given.extend(images)
        return see(pipeline, images)

    original, see = FramePipeline.__init__, FramePipeline._see
    monkeypatch.setattr(FramePipeline, "__init__", takes_bgr)
    monkeypatch.setattr(FramePipeline, "_see", noted)
    options = {"image_type": "sensor_msgs/msg/Image", "encoding": "bgr8"}
    events = [e._replace(topic=e.topic.replace("/compressed", "")) for e in pictures(6)]
    assert run(write_bag(tmp_path / "drive", events, **options))[0] == 0
    assert sweeps(tmp_path / "out" / "drive") == expected(6)
    assert {(image.encoding, image.pixels.shape) for image in given} == {("bgr8", (44, 80, 3))}


@pytest.mark.parametrize("kind", ["mcap", "sqlite", "ros1"])
def test_merging_leaves_the_originals_as_they_are(kind, run, tmp_path) -> None:
    bag = write_bag(tmp_path / "drive", pictures(12), kind)
    assert run(bag, options=["--merge", "--namespace", "lidargen"])[0] == 0
    out = tmp_path / "out" / "drive"
    assert sweeps(out, "/lidargen/points") == expected(12)
    with BagReader(bag) as before, BagReader(out) as after:
        topics = list(before.topics)
        want = [(m.topic, m.msgtype, m.time_ns, m.cdr()) for m in before.messages()]
        assert [(m.decode().number, m.decode().text) for m in after.messages(["/own"])] == [
            (i, "ä") for i in range(12)
        ]
        assert after.topics["/own"].msgtype == OWN
    assert raw(out, topics) == want
    times = [time for _, _, time, _ in raw(out, None)]
    assert times == sorted(times)


def test_a_topic_that_is_taken_is_named(run, tmp_path) -> None:
    bag = write_bag(tmp_path / "drive", [*pictures(3), Event(START + 10**9, "/metadata")])
    code, summary = run(bag, options=["--merge"])
    assert code == 1
    assert "has a topic /metadata already" in summary["bags_done"][0]["error"]
    assert "--namespace lidargen" in summary["bags_done"][0]["error"]
    assert run(bag, options=["--merge", "--namespace", "lidargen"])[0] == 0


def test_any_number_of_workers_gives_the_same_bytes(run, tmp_path) -> None:
    bags = [write_bag(tmp_path / name, pictures(17)) for name in ("one", "two")]
    for out, workers in (("a", 1), ("b", 2)):
        code, summary = run(*bags, out=tmp_path / out, options=["--merge", "--workers", str(workers)])
        assert (code, summary["made"], summary["sweeps_out"]) == (0, 2, 34)
    for name in ("one", "two"):
        assert files(tmp_path / "a" / name) == files(tmp_path / "b" / name)
    code, summary = run(*bags, out=tmp_path / "a", options=["--merge"])
    assert (code, summary["there already"], summary["sweeps_out"]) == (0, 2, 34)


def command(bundle, bag, out, *options) -> list[str]:
    arguments = ["synthesize", str(bag), "--out", str(out), "--bundle", str(bundle), *OPTIONS, *options]
    return [sys.executable, "-m", "lidargen_ros.cli", *arguments]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_anywhere_and_run_again(workers, bundle, run, tmp_path) -> None:
    bag, out = write_bag(tmp_path / "drive", pictures(60)), tmp_path / "out"
    assert run(bag, out=tmp_path / "whole", options=["--merge"])[0] == 0
    work = out / ".drive.work"
    for reached in (2, 6)[:workers]:  # each start of a process takes a second or two
        process = subprocess.Popen(command(bundle, bag, out, "--merge", "--workers", str(workers)), cwd=ROOT)
        while len(list(work.glob("[0-9]*.json"))) < reached:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.wait()
    assert not (out / "drive").exists()
    code, summary = run(bag, out=out, options=["--merge"])
    assert (code, summary["sweeps_out"]) == (0, 60)
    assert files(out / "drive") == files(tmp_path / "whole" / "drive")
    assert not work.exists()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_worker_that_is_lost_is_replaced(engine, bundle, run, tmp_path) -> None:
    if engine == "ray":
        pytest.importorskip("ray", reason="Ray is not installed")
    bag, out = write_bag(tmp_path / "drive", pictures(60)), tmp_path / "out"
    assert run(bag, out=tmp_path / "whole", options=["--merge"])[0] == 0
    options = ("--merge", "--workers", "2", "--engine", engine, "--json")
    process = subprocess.Popen(
        command(bundle, bag, out, *options), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    work, lost = out / ".drive.work", 0
    while not lost:
        assert process.poll() is None
        begun = [p.name for p in work.glob(".0*.mcap")]  # .NUMBER.MACHINE.PROCESS.mcap
        if begun and len(list(work.glob("[0-9]*.json"))) >= 2:
            lost = int(begun[0].split(".")[-2])
            os.kill(lost, signal.SIGKILL)
        time.sleep(0.001)
    told, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert json.loads(told)["sweeps_out"] == 60
    assert files(out / "drive") == files(tmp_path / "whole" / "drive")


def test_stopped_by_a_signal(bundle, run, tmp_path) -> None:
    bag, out = write_bag(tmp_path / "drive", pictures(60)), tmp_path / "out"
    process = subprocess.Popen(command(bundle, bag, out), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not list((out / ".drive.work").glob("[0-9]*.json")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on from here" in told
    assert not list((out / ".drive.work").glob(".*"))
    assert run(bag, out=out)[1]["sweeps_out"] == 60


def test_a_run_at_a_time(bundle, run, tmp_path) -> None:
    import fcntl

    bag, out = write_bag(tmp_path / "drive", pictures(3)), tmp_path / "out"
    (out / ".drive.work").mkdir(parents=True)
    with (out / ".drive.work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, summary = run(bag, out=out)
    assert code == 1
    assert "another run is writing" in summary["bags_done"][0]["error"]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a file system that nobody can write")
def test_a_place_that_cannot_be_written_is_named(run, tmp_path) -> None:
    code, error = run(write_bag(tmp_path / "drive", pictures(1)), out=Path("/sys/kernel/lidargen"))
    assert code == 1
    assert error == "/sys/kernel/lidargen cannot be made: Operation not permitted; choose another --out"


def test_other_options_do_not_mix(run, tmp_path) -> None:
    bag = write_bag(tmp_path / "drive", pictures(3))
    assert run(bag)[0] == 0
    code, summary = run(bag, options=["--seed", "3"])
    assert code == 1
    assert "was made with another seed (0, now 3); delete it" in summary["bags_done"][0]["error"]
    shutil.rmtree(tmp_path / "out" / "drive")
    (tmp_path / "out" / "drive").mkdir()
    assert "was not made by this command" in run(bag)[1]["bags_done"][0]["error"]


@pytest.mark.parametrize("kind", ["mcap", "mcap-zstd", "sqlite", "ros1"])
@pytest.mark.parametrize("merge", [False, True])
def test_a_bag_that_is_cut_gives_what_lies_before(kind, merge, run, tmp_path) -> None:
    bag = write_bag(tmp_path / "drive", pictures(60), kind)
    file = bag if kind == "ros1" else next(p for p in bag.iterdir() if p.suffix in (".mcap", ".db3"))
    os.truncate(file, int(file.stat().st_size * 0.6))
    code, summary = run(bag, options=["--merge"] if merge else [])
    about = summary["bags_done"][0]
    assert code == 3
    assert "is cut off or damaged at byte" in about["damage"]
    assert str(file.name) in about["damage"]
    out = tmp_path / "out" / "drive"
    found = sweeps(out)
    assert found == expected(60)[: len(found)]
    assert len(found) >= about["frames_in"] - 1
    assert len(found) > 25
    if merge:
        with BagReader(bag) as before:
            want = [(m.topic, m.msgtype, m.time_ns, m.cdr()) for m in before.messages()]
        assert raw(out, {m[0] for m in want}) == want


def test_frames_that_fail_are_listed_and_the_rest_goes_on(run, tmp_path) -> None:
    events = changed(
        pictures(12),
        lambda e: e._replace(broken=True) if e.topic.startswith("/rear_left") and e.level == 4 else e,
    )
    events = changed(events, lambda e: None if e.topic.startswith("/rear_right") and e.level in (7, 8) else e)
    bag = write_bag(tmp_path / "drive", events)
    code, summary = run(bag)
    about = summary["bags_done"][0]
    assert code == 3
    assert about["unmatched"] == {"incomplete:rear_right": 2}
    assert [f["stamp_ns"] for f in about["failed"]] == [START + 4 * PERIOD]
    assert "/rear_left/image/compressed: truncated JPEG" in about["failed"][0]["reason"]
    want = [e for i, e in enumerate(expected(12)) if i not in (4, 7, 8)]
    assert sweeps(tmp_path / "out" / "drive") == want
    code, summary = run(bag, out=tmp_path / "two", options=["--set", "min_cameras=2"])
    assert (code, summary["sweeps_out"]) == (0, 12)
    assert "truncated JPEG" in summary["bags_done"][0]["notes"][0]


def test_unsorted_stamps_and_messages(run, tmp_path) -> None:
    """Stamps that jump back, and a camera that is recorded late, lose nothing."""
    late = changed(
        pictures(12), lambda e: e._replace(time_ns=e.time_ns + 130 * MS) if "left" in e.topic else e
    )
    again = [e._replace(time_ns=e.time_ns + 20 * PERIOD) for e in late]
    bag = write_bag(tmp_path / "drive", sorted(late + again))
    code, summary = run(bag)
    assert (code, summary["sweeps_out"], summary["unmatched"]) == (0, 24, 0)
    assert sweeps(tmp_path / "out" / "drive") == expected(12) + [
        (t + 20 * PERIOD, stamp, level) for t, stamp, level in expected(12)
    ]
    shuffled = [e for i in range(0, 48, 8) for e in reversed(sorted(pictures(12))[i : i + 8])]
    assert run(write_bag(tmp_path / "shuffled", shuffled))[1]["sweeps_out"] == 12


def test_what_cannot_be_done_is_said_and_the_other_bags_are_made(run, tmp_path) -> None:
    good = write_bag(tmp_path / "good", pictures(3))
    empty = write_bag(tmp_path / "empty", [])
    other = write_bag(
        tmp_path / "other",
        changed(pictures(3), lambda e: e._replace(topic=e.topic.replace("/rear", "/cam/rear"))),
    )
    blind = write_bag(
        tmp_path / "blind",
        changed(pictures(3), lambda e: e._replace(topic="/video") if e.topic == "/own" else None),
    )
    apart = write_bag(
        tmp_path / "apart",
        changed(pictures(3), lambda e: e._replace(stamp_ns=e.stamp_ns + 50 * MS) if "left" in e.topic else e),
    )
    code, summary = run(good, empty, other, blind, apart, tmp_path / "none")
    assert code == 1
    errors = {Path(s["bag"]).name: s.get("error", "") for s in summary["bags_done"]}
    assert (summary["made"], summary["failed"], errors["good"]) == (1, 5, "")
    assert "holds no messages" in errors["empty"]
    assert (
        "no images of rear_left, rear_right; topics that look like cameras: /cam/rear_left" in errors["other"]
    )
    assert "(CompressedImage, 3 messages)" in errors["other"]
    assert f"no topic holds images; of a type that is not read: /video ({OWN})" in errors["blind"]
    assert "none of 3 frames gave a sweep (incomplete:rear_left 3)" in errors["apart"]
    assert "does not exist" in errors["none"]
    topics = [
        f"--camera=/{p}{c}/image/compressed" for p, c in zip(("", "cam/", "cam/"), CAMERAS, strict=True)
    ]
    assert run(other, out=tmp_path / "named", options=topics)[0] == 0
    assert sweeps(tmp_path / "named" / "other") == expected(3)


def test_a_wrong_calibration_is_refused_or_noted(run, tmp_path) -> None:
    from stub_node import rig

    bag = write_bag(tmp_path / "drive", pictures(3))
    rig().scaled(80, 80).save(tmp_path / "square.yaml")
    _, summary = run(bag, options=["--rig", str(tmp_path / "square.yaml")])
    assert "images are 80 x 44, the calibration is for 80 x 80" in summary["bags_done"][0]["notes"][0]
    text = (tmp_path / "square.yaml").read_text()
    (tmp_path / "nan.yaml").write_text(text.replace("fx: 37.5", "fx: .nan"))
    for options, words in (
        (["--rig", str(tmp_path / "nan.yaml")], "front"),
        (["--rig", "nowhere"], "not known"),
        (["--camera", "front"], "has 3 views"),
        (["--set", "calibration=camera_info"], "no CameraInfo on /front/camera_info"),
    ):
        code, summary = run(bag, out=tmp_path / "x", options=options)
        assert code == 1
        assert words in summary["bags_done"][0]["error"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "point_typ=ouster"], "not name=value of a parameter"),
        (["--set", "point_type=x"], "choose one of"),
        (["--outputs", "points,scan"], "'scan' is not known"),
        (["--outputs", "metadata"], "hold no LiDAR"),
        (["--slice", "0"], "slices of 0 s"),
        (["--params", "/nowhere.yaml"], "is no parameter file"),
    ],
)
def test_options_that_make_no_sense(options, words, run, tmp_path) -> None:
    code, error = run(write_bag(tmp_path / "drive", pictures(1)), options=options)
    assert code == 1
    assert words in error
    assert "\n" not in error


def test_the_nodes_parameter_file_is_understood(run, tmp_path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(
        "/**:\n  ros__parameters:\n    use_sim_time: true\n    point_type: ouster\n    frame_id: roof\n"
    )
    options = [
        "--params",
        str(params),
        "--set",
        "organised=false",
        "--outputs",
        "points",
        "--namespace",
        "/a/b",
    ]
    assert run(write_bag(tmp_path / "drive", pictures(3)), options=options)[0] == 0
    with BagReader(tmp_path / "out" / "drive") as bag:
        assert list(bag.topics) == ["/a/b/points"]
        cloud = next(bag.messages()).decode()
    assert (cloud.point_step, cloud.height, cloud.header.frame_id) == (48, 1, "roof")
