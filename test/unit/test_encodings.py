# SPDX-License-Identifier: Apache-2.0
"""Raw pictures: what OpenCV makes of them on the host and what the graphs make of them where an engine computes."""

import numpy as np
import pytest
from raw_pictures import raw_picture

from lidargen_ros.cameras.encodings import ENCODINGS, RawPicture, picture_size, to_rgb
from lidargen_ros.errors import InputError

HEIGHT, WIDTH = 96, 160
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def padded(picture):
    """The same picture with bytes after each row, as messages may have."""
    rows, columns = picture.pixels.shape[:2]
    wide = np.zeros((rows, columns + 6, *picture.pixels.shape[2:]), np.uint8)
    wide[:, :columns] = picture.pixels
    return picture._replace(pixels=wide[:, :columns])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_host_gives_back_what_was_sent(encoding):
    smooth = np.indices((HEIGHT, WIDTH)).sum(0)[..., None] // 2 + np.array([20, 60, 90])
    rgb = np.repeat(smooth[..., :1], 3, -1) if ENCODINGS[encoding].channels == 1 else smooth
    rgb = rgb.astype(np.uint8)
    picture = padded(raw_picture(rgb, encoding))
    picture.check("it")
    assert picture_size(picture) == picture.size == (HEIGHT, WIDTH)
    np.testing.assert_allclose(to_rgb(picture).astype(int), rgb, atol=3)


@pytest.mark.parametrize("encoding", [name for name, e in ENCODINGS.items() if e.graph != "pixels"])
def test_graphs_and_opencv_agree(encoding):
    """On noise, the hardest there is: within one level, and exactly for mosaics, borders too."""
    torch = pytest.importorskip("torch")
    from lidargen_ros.models.frame_graphs import picture_graphs

    picture, order = padded(raw_picture(NOISE, encoding)), torch.tensor(ENCODINGS[encoding].order)
    graph = picture_graphs()[ENCODINGS[encoding].graph]
    cells = picture.cells()
    assert np.shares_memory(cells, picture.pixels)
    found = graph.module(torch.from_numpy(cells.copy()[None]), order)[0].numpy()
    difference = np.abs(found.astype(int) - picture.rgb())
    assert difference.max() <= (0 if encoding.startswith("bayer") else 1)


@pytest.mark.parametrize(
    ("pixels", "encoding", "words"),
    [
        (np.zeros((4, 4, 3), np.uint8), "rgb48", "encoding 'rgb48' is unknown; give one of rgb8"),
        (np.zeros((4, 4), np.uint8), "bgr8", r"uint8 \(4, 4\), which is no bgr8"),
        (np.zeros((4, 4, 1), np.uint8), "mono8", "no mono8"),
        (np.zeros((4, 3, 2), np.uint8), "uyvy", "no uyvy"),
        (np.zeros((5, 4), np.uint8), "nv12", "no nv12"),
        (np.zeros((4, 4, 3), np.uint16), "bgr8", "uint16"),
        (np.zeros((0, 4, 3), np.uint8), "bgr8", "no bgr8"),
    ],
)
def test_what_is_no_picture_of_its_encoding(pixels, encoding, words):
    with pytest.raises(InputError, match=words) as caught:
        RawPicture(pixels, encoding).check("image 0")
    assert "\n" not in str(caught.value)
