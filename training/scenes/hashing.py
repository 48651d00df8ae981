# SPDX-License-Identifier: Apache-2.0
"""Counter-based random numbers: the same on every device, with no state and no synchronisation.

Worlds are drawn with a 64-bit mixer (SplitMix64 finaliser; Steele, Lea, Flood 2014), textures and sensor
noise with a 32-bit one (Wellons' ``lowbias32`` constants). Integer overflow wraps, as in two's complement.
"""

import math

import torch
from torch import Tensor


def _signed(value: int, bits: int) -> int:
    """The two's complement integer with the bit pattern of ``value``."""
    return value - (1 << bits) if value >> (bits - 1) else value


_GOLDEN = _signed(0x9E3779B97F4A7C15, 64)
_MIX1 = _signed(0xBF58476D1CE4E5B9, 64)
_MIX2 = _signed(0x94D049BB133111EB, 64)
_LOW1 = _signed(0x7FEB352D, 32)
_LOW2 = _signed(0x846CA68B, 32)


def _shift(x: Tensor, by: int, bits: int) -> Tensor:
    """Logical (not arithmetic) shift to the right."""
    return (x >> by) & ((1 << (bits - by)) - 1)


def _mix64(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30, 64)) * _MIX1
    x = (x ^ _shift(x, 27, 64)) * _MIX2
    return x ^ _shift(x, 31, 64)


def uniforms(seeds: Tensor, count: int) -> Tensor:
    """``[B]`` int64 seeds -> ``[B, count]`` float32 in [0, 1), equal bit for bit on every device."""
    counter = torch.arange(1, count + 1, device=seeds.device, dtype=torch.int64)
    x = _mix64(_mix64(seeds.to(torch.int64) * _GOLDEN + 1)[:, None] + counter * _GOLDEN)
    return _shift(x, 40, 64).to(torch.float32) * 2.0**-24


def _mix32(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 16, 32)) * _LOW1
    x = (x ^ _shift(x, 15, 32)) * _LOW2
    return x ^ _shift(x, 16, 32)


def hash_int(*keys: Tensor | int) -> Tensor:
    """Mix integers (tensors broadcast against one another; the first must be one) into one int32 hash."""
    first, *rest = keys
    x = _mix32(first.to(torch.int32) + 0x3779B9)
    for key in rest:
        x = _mix32(x * 31 + (key.to(torch.int32) if isinstance(key, Tensor) else key))
    return x


def hash_unit(*keys: Tensor | int) -> Tensor:
    """Mix integer tensors into one float32 in [0, 1). The first key must be a tensor."""
    return _shift(hash_int(*keys), 8, 32).to(torch.float32) * 2.0**-24


def hash_normal(*keys: Tensor | int) -> Tensor:
    """Standard normal numbers from integer keys (Box and Muller)."""
    h = hash_int(*keys)
    a = _shift(h, 8, 32).to(torch.float32) * 2.0**-24
    b = _shift(_mix32(h + 0x51ED27), 8, 32).to(torch.float32) * 2.0**-24
    return torch.sqrt(-2.0 * torch.log(a + 2.0**-25)) * torch.cos(2.0 * math.pi * b)
