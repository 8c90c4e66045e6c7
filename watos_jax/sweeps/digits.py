"""From the number of a hardware point to its digits, alike on the host and on the device, without large integers."""

from types import ModuleType
from typing import Any

import numpy as np


def decode(xp: ModuleType, base: Any, offset: Any, sizes: tuple[int, ...], seed: int | None = None) -> list[Any]:
    """Digits of hardware points, slowest first, by adding an offset to the digits of the first; no large integer.

    Random points hash their number, so that point i is the same in every process.

    Args:
        xp: numpy or jax.numpy; both give the same digits.
        base: digits of the first point, int32; or halves of its number, uint32, where points are random.
        offset: points after the first, int32, below 2**30.
        sizes: number of values of each digit.
        seed: of random points; all points in their order where None.
    """
    if seed is not None:
        low = base[0] + offset.astype(xp.uint32)
        high = base[1] + (low < base[0]).astype(xp.uint32)
        seed = _hash(xp, xp.asarray(seed, xp.uint32) + xp.zeros_like(low), 0)
        key = _hash(xp, low ^ _hash(xp, high ^ seed, 1), 2)
        return [
            (_hash(xp, key, 3 + number) % xp.asarray(size, xp.uint32)).astype(xp.int32)
            for number, size in enumerate(sizes)
        ]
    digits, carry = [], offset
    for number in reversed(range(len(sizes))):
        total = base[number] + carry
        carry = total // sizes[number]
        digits.append(total - carry * sizes[number])
    return digits[::-1]


def _hash(xp: ModuleType, value: Any, salt: int) -> Any:
    # the finaliser of MurmurHash3 on 32 bits, salted
    constant = [xp.asarray(c & 0xFFFFFFFF, xp.uint32) for c in (0x9E3779B9 * (salt + 1), 0x85EBCA6B, 0xC2B2AE35)]
    with np.errstate(over="ignore"):
        value = value + constant[0]
        value = (value ^ (value >> xp.asarray(16, xp.uint32))) * constant[1]
        value = (value ^ (value >> xp.asarray(13, xp.uint32))) * constant[2]
        return value ^ (value >> xp.asarray(16, xp.uint32))
