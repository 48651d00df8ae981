# SPDX-License-Identifier: Apache-2.0
"""Light: sun and sky on surfaces, mirrors, haze, and the sky itself. Colours are linear RGB."""

import torch
from torch import Tensor

from . import world as w
from .cast import FAR, Vec
from .surfaces import Surface, flag, mix, noise, select


def light_terms(light: Tensor) -> dict[str, Tensor]:
    """The parameters of the light by name, each ``[B, 1, 1]``."""
    return dict(zip(w.LIGHT, light[:, :, None, None].unbind(1), strict=True))


def sun_direction(light: Tensor) -> Vec:
    return tuple(light[:, i, None, None] for i in range(3))


def sky(light: Tensor, direction: Vec) -> Vec:
    """Colour of the sky in a direction: gradient, clouds and the glow around the sun."""
    dx, dy, dz = direction
    g = light_terms(light)
    up = dz.clamp(min=0.0)
    low = (1.0 - up).clamp(0.0, 1.0)
    rise = 1.0 - low * low * low
    horizon, zenith = (
        (g["horizon_r"], g["horizon_g"], g["horizon_b"]),
        (g["zenith_r"], g["zenith_g"], g["zenith_b"]),
    )
    colour = mix(horizon, zenith, rise)
    # Clouds on a plane high above; each world has its own.
    far = 1.7 / (up + 0.12)
    px, py = dx * far + 40.0 * g["clouds"], dy * far + 17.0 * g["exposure"]
    key = (g["clouds"] * 4096.0).to(torch.int32)
    n = 0.6 * noise(px, py, key) + 0.4 * noise(2.7 * px, 2.7 * py, key + 1)
    cloud = (
        ((n - 0.62 + 0.35 * g["clouds"]) * 4.0).clamp(0.0, 1.0)
        * (up * 6.0).clamp(max=1.0)
        * flag(g["clouds"] > 0.1)
    )
    white = 0.9 + 0.1 * g["sun_r"]
    colour = tuple(c + (white - c) * 0.85 * cloud for c in colour)
    toward = (dx * g["sun_x"] + dy * g["sun_y"] + dz * g["sun_z"]).clamp(0.0, 1.0)
    halo = (0.25 * toward**16 + 4.0 * toward**600) * (g["sun_r"] / 3.0) * (1.0 - 0.8 * cloud)
    return (colour[0] + halo, colour[1] + 0.93 * halo, colour[2] + 0.8 * halo)


def radiance(light: Tensor, hit: Surface, direction: Vec, sun_seen: Tensor, distance: Tensor) -> Tensor:
    """Light toward the eye, ``[B, I, J, 3]``: sun and sky on surfaces, mirrored sky in glass, haze, the sky itself."""
    g = light_terms(light)
    sun, zenith = (g["sun_r"], g["sun_g"], g["sun_b"]), (g["zenith_r"], g["zenith_g"], g["zenith_b"])
    horizon = (g["horizon_r"], g["horizon_g"], g["horizon_b"])
    nx, ny, nz = hit.normal
    facing = (nx * g["sun_x"] + ny * g["sun_y"] + nz * g["sun_z"]).clamp(min=0.0) * sun_seen
    open_sky = 0.5 + 0.5 * nz
    ambient = tuple(
        (0.33 * z + 0.22 * h) * open_sky + 0.12 * (1.0 - open_sky)
        for z, h in zip(zenith, horizon, strict=True)
    )
    wet = g["wet"] * flag(hit.kind == w.ROAD)
    lit = tuple(
        a * (1.0 - 0.45 * wet) * (s * facing + b) for a, s, b in zip(hit.albedo, sun, ambient, strict=True)
    )
    # Mirrors: windows, wet road, a little on paint; Schlick's approximation of Fresnel's equations. One look at the
    # sky serves both the mirror and the open sky, since a ray has one or the other.
    along = (direction[0] * nx + direction[1] * ny + direction[2] * nz).clamp(-1.0, 1.0)
    open_air = hit.kind == w.NONE
    mirrored = tuple(d - 2.0 * along * n for d, n in zip(direction, (nx, ny, nz), strict=True))
    seen_sky = sky(light, select(open_air, direction, mirrored))
    below = flag(mirrored[2] < 0.0)  # the mirror shows the street: a dim grey
    reflected = tuple(s + (0.16 * h - s) * below for s, h in zip(seen_sky, horizon, strict=True))
    grazing = (1.0 - along.abs()) ** 5
    painted = flag(hit.kind == w.VEHICLE)
    shine = (
        hit.glass * (0.25 + 0.75 * grazing) + painted * (0.04 + 0.5 * grazing) + wet * (0.05 + 0.6 * grazing)
    )
    lit = tuple(c + (0.02 - c) * hit.glass for c in lit)
    lit = mix(lit, reflected, shine.clamp(max=1.0))
    lit = tuple(c + k * hit.glow for c, k in zip(lit, (1.0, 0.8, 0.5), strict=True))
    lit = mix(horizon, lit, torch.exp(-torch.where(distance < FAR, distance, 0.0) * g["haze"]))
    return torch.stack(select(open_air, seen_sky, lit), dim=-1)
