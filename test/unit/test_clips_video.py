# SPDX-License-Identifier: Apache-2.0
"""Frame n is the n-th picture in display order: with B-frames, uneven stamps, and however it is sought."""

import random
from fractions import Fraction

import numpy as np
import pytest

from lidargen_ros.bags.video import VideoReader
from lidargen_ros.errors import DataError

av = pytest.importorskip("av")
COUNT = 40


def write(path, options, stamps=None, time_base=30):
    """Pictures whose grey level tells their number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "10", **options})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, time_base)
        for n in range(COUNT):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 + 5 * n, np.uint8), format="rgb24")
            if stamps is not None:
                picture.pts, picture.time_base = stamps[n], Fraction(1, time_base)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def number(picture):
    return round((float(picture.mean()) - 10) / 5)


KINDS = {
    "key_frames_only": ({"g": "1"}, None),
    "no_b_frames": ({"g": "8", "bf": "0"}, None),
    "b_frames": ({"g": "12", "bf": "3"}, None),
    "one_key_frame": ({"g": "250", "bf": "2"}, None),
    "a_gap": ({"g": "8", "bf": "0"}, [n + 5 * (n > 20) for n in range(COUNT)]),
    "uneven": ({"g": "8", "bf": "2"}, [n * n for n in range(COUNT)]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [True, False])
def test_frames_by_number(kind, index, tmp_path, monkeypatch):
    if not index:  # older PyAV has no index of the container
        monkeypatch.setattr("lidargen_ros.bags.video.getattr", lambda *_: None, raising=False)
    video = VideoReader(write(tmp_path / "v.mp4", *KINDS[kind]))
    assert len(video) == COUNT
    order = [*range(COUNT), *random.Random(0).sample(range(COUNT), COUNT), COUNT - 1, 0]
    for n in order:
        assert number(video.frame(n)) == n
    for n in (-1, COUNT):
        with pytest.raises(DataError, match="the video has 40"):
            video.frame(n)
    video.close()


def test_rate(tmp_path):
    assert VideoReader(write(tmp_path / "v.mp4", {})).fps == 30
