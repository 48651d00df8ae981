# SPDX-License-Identifier: Apache-2.0
"""Pictures where an engine computes: raw bytes of cameras to RGB, and RGB shrunk into the atlas. No weights.

Each graph casts bytes to float32 before anything else, and back after everything else: TensorRT takes and gives bytes at a
graph's door, but no operator works on them. How bytes are split into cells is ``cameras.encodings.RawPicture.cells``; what
``order`` means, ``Encoding``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PixelsGraph(nn.Module):
    """``(images [V, H, W, C] uint8, images_order [3], row_weights [h, H], column_weights [w, W]) -> atlas [V h, w, 3] uint8``.

    Two matrix products; equal to OpenCV's INTER_AREA within one grey level (``cameras.align.area_weights``). The order of
    colours is put right last, where the least is left to move.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        # Sums of bytes: half precision keeps them to a quarter of a level, bfloat16 would not.
        self.dtype = torch.float16 if dtype == torch.bfloat16 else dtype

    def forward(
        self, images: Tensor, images_order: Tensor, row_weights: Tensor, column_weights: Tensor
    ) -> Tensor:
        views, height, width, channels = images.shape
        rows = row_weights.to(self.dtype) @ images.to(self.dtype).reshape(views, height, width * channels)
        # One product of all rows: a batch of many with three rows each takes as long as all the rest of a frame.
        planes = rows.reshape(-1, width, channels).transpose(1, 2).reshape(-1, width)
        atlas = (planes @ column_weights.to(self.dtype).T).reshape(-1, channels, column_weights.shape[0])
        return atlas.index_select(1, images_order).transpose(1, 2).round().clamp(0, 255).to(torch.uint8)


class YuvGraph(nn.Module):
    """Y of some pixels and the Cb and Cr that they share -> their colours, one small matrix product for all of them.

    Studio swing (Rec. ITU-R BT.601), with the rounding of OpenCV and its factors: 1.164 and the like to 20 binary digits. As
    decimals they would make many sums end in one half, which float32 rounds this way or that.
    """

    matrix: Tensor
    black: Tensor
    floor: Tensor

    def __init__(self, pixels: int) -> None:
        super().__init__()
        luma = torch.kron(torch.eye(pixels), torch.full((1, 3), 1220542.0))
        chroma = torch.tensor([[0.0, -409993.0, 2116026.0], [1673527.0, -852492.0, 0.0]]).repeat(1, pixels)
        self.register_buffer("matrix", torch.cat([luma, chroma]) / 2**20, persistent=False)
        self.register_buffer("black", torch.tensor([16.0] * pixels + [128.0] * 2), persistent=False)
        self.register_buffer("floor", torch.tensor([0.0] * pixels + [-128.0] * 2), persistent=False)

    def colours(self, cells: Tensor) -> Tensor:
        """``[..., Y of each pixel, Cb, Cr]`` of 0..255 -> whole numbers of 0..255 ``[..., red, green, blue of each pixel]``."""
        known = torch.maximum(cells - self.black, self.floor)  # below black is black
        return (known @ self.matrix + 0.5).floor().clamp(0, 255)


class Yuv422Graph(YuvGraph):
    """``(yuv422 [V, H, W / 2, 4] uint8, yuv422_order [4]) -> images [V, H, W, 3] uint8``; two pixels share their colour."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, yuv422: Tensor, yuv422_order: Tensor) -> Tensor:
        views, height, pairs, _ = yuv422.shape
        rgb = self.colours(yuv422.float().index_select(3, yuv422_order))
        return rgb.reshape(views, height, 2 * pairs, 3).to(torch.uint8)


class Nv12Graph(YuvGraph):
    """``(nv12 [V, 3, H / 2, W / 2, 2] uint8, nv12_order [2]) -> images [V, H, W, 3] uint8``; four pixels share their colour."""

    def __init__(self) -> None:
        super().__init__(4)

    def forward(self, nv12: Tensor, nv12_order: Tensor) -> Tensor:
        views, _, rows, columns, _ = nv12.shape
        planes = nv12.float()
        luma = planes[:, :2].reshape(views, rows, 2, columns, 2).transpose(2, 3).flatten(3)
        rgb = self.colours(torch.cat([luma, planes[:, 2].index_select(3, nv12_order)], 3))
        squares = rgb.reshape(views, rows, columns, 2, 6).transpose(2, 3)
        return squares.reshape(views, 2 * rows, 2 * columns, 3).to(torch.uint8)


class BayerGraph(nn.Module):
    """``(bayer [V, H / 2, 2, W / 2, 2] uint8, bayer_order [4]) -> images [V, H, W, 3] uint8``, bilinear.

    Each colour is averaged over the nearest pixels that have it. The outermost rows and columns repeat their inner
    neighbours, as OpenCV's do.
    """

    kernels: Tensor

    def __init__(self) -> None:
        super().__init__()
        cross = torch.tensor([[0.0, 0.25, 0.0], [0.25, 1.0, 0.25], [0.0, 0.25, 0.0]])
        square = torch.tensor([[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]])
        self.register_buffer("kernels", torch.stack([square, cross, square])[:, None], persistent=False)

    def forward(self, bayer: Tensor, bayer_order: Tensor) -> Tensor:
        views, rows, _, columns, _ = bayer.shape
        colours = torch.arange(3, device=bayer.device)[:, None]
        has = (bayer_order[None] == colours).float().reshape(3, 1, 2, 1, 2)
        planes = (bayer.float()[:, None] * has).reshape(views, 3, 2 * rows, 2 * columns)
        inner = F.conv2d(planes, self.kernels, groups=3)
        whole = F.pad(inner, (1, 1, 1, 1), mode="replicate")
        return (whole + 0.5).floor().permute(0, 2, 3, 1).to(torch.uint8)
