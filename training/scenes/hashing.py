# SPDX-License-Identifier: Apache-2.0
"""Counter-based random numbers: the same on every device, with no state and no synchronisation.

Worlds are drawn with a 64-bit mixer (SplitMix64 finaliser; Steele, Lea, Flood 2014), textures and sensor
noise with a 32-bit one (Wellons' ``lowbias32`` constants). Integer overflow wraps, as in two's complement.
"""

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


_ODD = (73_856_093, 19_349_663, 83_492_791, 49_979_687)


def _combine(keys: tuple[Tensor | int, ...]) -> Tensor:
    """One int32 from several integers: a linear combination, to be mixed afterwards."""
    parts = [
        (k.to(torch.int32) if isinstance(k, Tensor) else k) * odd for k, odd in zip(keys, _ODD, strict=False)
    ]
    return sum(parts[1:], parts[0])


def hash_int(*keys: Tensor | int) -> Tensor:
    """Mix up to four integers (tensors broadcast against one another; small numbers) into one int32."""
    return _mix32(_combine(keys))


def hash_unit(*keys: Tensor | int) -> Tensor:
    """Mix up to four integers into one float32 in [0, 1)."""
    return _shift(hash_int(*keys), 8, 32).to(torch.float32) * 2.0**-24


def lattice_unit(ix: Tensor, iy: Tensor, key: Tensor) -> Tensor:
    """A float32 in [0, 1) for each lattice point and key: half a mix, good enough for textures and cheap."""
    x = _combine((ix, iy, key))
    x = (x ^ _shift(x, 16, 32)) * _LOW1
    return _shift(x, 8, 32).to(torch.float32) * 2.0**-24


def hash_normal(*keys: Tensor | int) -> Tensor:
    """Nearly normal numbers (mean 0, standard deviation 1, at most 3) from integers: the sum of three uniforms."""
    h = hash_int(*keys)
    total = _shift(h, 22, 32) + (_shift(h, 11, 32) & 1023) + (h & 1023)
    return total.to(torch.float32) * (2.0 / 1023.0) - 3.0
