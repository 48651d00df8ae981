# SPDX-License-Identifier: Apache-2.0
"""How sensors see light: LiDAR returns, intensity, noise and dropouts; camera exposure, white balance and noise."""

import torch
from torch import Tensor

from .cast import Vec
from .hashing import hash_normal, hash_unit
from .shade import light_terms
from .surfaces import Surface
from .world import VEGETATION

RANGE_NOISE_M = 0.02
RANDOM_DROPOUT = 0.004
_GLASS_LOST = 0.97  # share of the shots at windows without an echo
_THRESHOLD = 0.016  # weakest echo (reflectivity x cosine, at 100 m) that is seen half of the time


def lidar_return(
    hit: Surface, direction: Vec, distance: Tensor, max_range: float, noise: bool, *keys: Tensor
):
    """Range (metres, 0 = none) and intensity (0..1) of each shot.

    The echo is ``reflectivity x cos(incidence) / distance^2``; weak ones are lost with a soft threshold, so black
    paint returns only nearby and head-on, and glass mostly nothing. ``keys`` are integers that name the shot.
    """
    cosine = (
        direction[0] * hit.normal[0] + direction[1] * hit.normal[1] + direction[2] * hit.normal[2]
    ).abs()
    cosine = cosine.clamp(0.02, 1.0)
    strength = hit.reflectivity * cosine
    echo = strength * (100.0 / distance.clamp(min=15.0)) ** 2  # the optics saturate closer than 15 m
    seen = (hit.kind > 0) & (distance <= max_range)
    if noise:
        chance = (0.5 + 2.0 * (echo / _THRESHOLD - 1.0)).clamp(0.0, 1.0) * (1.0 - RANDOM_DROPOUT)
        chance = chance * (1.0 - _GLASS_LOST * hit.glass)
        seen = seen & (hash_unit(*keys, 0) < chance)
        # Leaves let light in: the echo comes from somewhere inside the crown.
        depth = torch.where(hit.kind == VEGETATION, 0.5, 0.0) * hash_unit(*keys, 3).square()
        distance = distance + depth + (RANGE_NOISE_M + 1e-4 * distance) * hash_normal(*keys, 1)
        strength = strength * (1.0 + 0.08 * hash_normal(*keys, 2))
    else:
        seen = seen & (hit.glass < 0.5) & (echo > _THRESHOLD)
    intensity = torch.where(seen, strength.clamp(0.0, 1.0), 0.0)
    return torch.where(seen, distance.clamp(min=0.0), 0.0), intensity


def develop(
    light: Tensor, colour: Tensor, radius_square: Tensor, noise: bool, camera_key: Tensor, pixel: Tensor
) -> Tensor:
    """Linear radiance ``[B, V, N, 3]`` -> 8-bit RGB of the same shape: exposure, white balance, vignetting, noise, tone.

    ``radius_square`` ``[N]`` is the squared distance from the image centre (1 at a corner), ``camera_key`` names the
    camera and frame (``[B, V, 1]`` integers), ``pixel`` ``[N]`` numbers the pixels.
    """
    g = light_terms(light)
    # Metering: what a grey card in half sun would give, off by up to half a stop per world and a little per camera.
    card = 0.2 * (0.5 * g["sun_g"] * g["sun_z"] + 0.33 * g["zenith_g"] + 0.22 * g["horizon_g"])
    stops = g["exposure"] + 0.5 * (hash_unit(camera_key, 7) - 0.5)
    gain = (0.22 / card * torch.exp2(stops) * (1.0 - 0.3 * radius_square))[..., None]
    channel = torch.arange(3, device=colour.device)
    warm = 0.1 * (hash_unit(camera_key, 8) - 0.5)
    balance = 1.0 + warm[..., None] * (1 - channel)
    signal = (colour * gain * balance).clamp(min=0.0)
    if noise:  # shot noise grows with the square root of the light, read noise stays
        sigma = torch.sqrt(0.00004 + 0.0006 * signal)
        signal = (signal + sigma * hash_normal(camera_key[..., None], pixel[:, None], channel)).clamp(min=0.0)
    curved = 1.0 - torch.exp(-1.6 * signal)  # a soft shoulder for the sky
    return (curved.clamp(1e-6, 1.0) ** (1.0 / 2.2) * 255.0 + 0.5).clamp(0.0, 255.0).to(torch.uint8)
