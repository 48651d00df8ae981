# SPDX-License-Identifier: Apache-2.0
"""Camera latents to a LiDAR latent with the published model: guidance, noise and solver put together."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sampling import SOLVERS, Progress, karras_sigmas, to_zero
from .dit_denoiser import Condition, DiffusionModel, FixedCorruption, RandomCorruption, guided
from .dit_latents import Size, join, padded_size, split
from .published_options import PublishedOptions

TEXT_TOKENS = 512  # per slot, all zero in the published pipeline


@dataclass(frozen=True)
class LatentSizes:
    """Latent rows and columns of the LiDAR and of each camera; the published sizes by default."""

    lidar: Size = (64, 224)
    camera: Size = (88, 160)

    @property
    def padded(self) -> Size:
        return padded_size(self.lidar, self.camera)


@torch.no_grad()
def sample_latent(
    model: DiffusionModel,
    cameras: Tensor,
    options: PublishedOptions,
    frame: str = "",
    sizes: LatentSizes | None = None,
    text: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draw a LiDAR latent.

    Args:
        model: network on the device to use.
        cameras: normalised camera latents ``[B, C, views, h, w]``.
        options: mode and its changes.
        frame: name that the initial noise depends on (``per_frame_noise``).
        sizes: latent sizes; None is the published ones.
        text: text embedding ``[B, V*tokens, width]``; None is the zero text of the published pipeline.
        progress: called after every evaluation.

    Returns:
        ``[B, C, 1, h, w]`` in the type of the weights (``model_arithmetic``) or float32.
    """
    sizes = sizes or LatentSizes()
    device = cameras.device
    dtype = model.dtype if options.model_arithmetic else torch.float32
    slots = model.net.config.views
    text_is_zero = text is None or not bool(text.any())
    if text_is_zero:
        text = None
        if not options.skip_zero_text:
            width = model.net.config.text_width
            text = torch.zeros(cameras.shape[0], slots * TEXT_TOKENS, width, device=device, dtype=model.dtype)
    condition = Condition(
        latent=join(None, cameras.to(dtype), sizes.lidar),
        text=text,
        content=(sizes.lidar, *((sizes.camera,) * (slots - 1))) if options.drop_padding else None,
    )
    unconditional = condition.without_text(skip=options.skip_zero_text)
    corrupt = RandomCorruption(device) if options.random_corruption else FixedCorruption()
    # The two branches only differ by text and by their draws of the corruption.
    no_op = text_is_zero and not options.random_corruption
    guides = options.guidance != 0 and not (no_op and options.single_pass)

    def denoiser(state: Tensor, level: float) -> Tensor:
        x = state.to(dtype)
        sigma = torch.full((x.shape[0],), level, device=device, dtype=dtype)
        x0 = model.denoise(x, sigma, condition, corrupt(x)).x0
        if guides:
            other = model.denoise(x, sigma, unconditional, corrupt(x)).x0
            x0 = guided(x0, other, options.guidance)
        return x0.to(state.dtype)

    sigmas = noise_levels(options)
    noise = initial_noise(condition.latent.shape, options, frame, device, dtype)
    with fast_attention(device):
        joint = SOLVERS[options.solver](denoiser, noise.double() * options.sigma_max, sigmas, progress)
    return split(joint.to(dtype), sizes.lidar, sizes.camera)[0]


def noise_levels(options: PublishedOptions) -> list[float]:
    """The published solver evaluates once more at ``sigma_min``; the others take a last step to 0 instead."""
    if options.solver == "adams_bashforth_2":
        return karras_sigmas(options.steps + 1, options.sigma_min, options.sigma_max)
    return to_zero(karras_sigmas(options.steps, options.sigma_min, options.sigma_max))


def initial_noise(
    shape: torch.Size, options: PublishedOptions, frame: str, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Unit noise, the same for all samples of a batch; see ``PublishedOptions.per_frame_noise``."""
    one = (1, *shape[1:])
    if options.per_frame_noise:
        digest = hashlib.sha256(f"{options.seed}/{frame}".encode()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        noise = torch.randn(one, generator=generator).to(device)
    else:
        generator = torch.Generator(device).manual_seed(options.seed)
        noise = torch.randn(one, generator=generator, device=device, dtype=dtype)
    return noise.expand(shape)


@contextlib.contextmanager
def fast_attention(device: torch.device) -> Iterator[None]:
    """Prefer cuDNN's attention on Hopper and newer, where it is well ahead of the default kernel."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 9:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    with sdpa_kernel(order, set_priority=True):
        yield
