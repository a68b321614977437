"""Numbers of 16 bits, and what else the statements that instructions become have names for."""
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ptx.memory import Array


def from_bf16(bits: Any) -> Array:
    return (np.asarray(bits, np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(x: Any) -> Array:
    """To the nearest, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), nearest)


def from_f16(bits: Any) -> Array:
    return np.asarray(bits, np.uint16).view(np.float16).astype(np.float32)


def to_f16(x: Any) -> Array:
    return np.asarray(x, np.float32).astype(np.float16).view(np.uint16)


def permuted(low: Any, high: Any, selectors: Any) -> Array:
    """`prmt`: each nibble of `selectors` names one of eight bytes, or, from 8 on, the sign of one, repeated."""
    both, selectors = np.asarray(high, np.uint64) << np.uint64(32) | low, np.asarray(selectors, np.uint64)
    chosen = np.uint64(0)
    for i in range(4):
        selector = selectors >> np.uint64(4 * i) & np.uint64(15)
        byte = both >> (selector & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)
        byte = np.where(selector > 7, byte // np.uint64(0x80) * np.uint64(0xFF), byte)
        chosen = chosen | byte << np.uint64(8 * i)
    return np.asarray(chosen).astype(np.uint32)


NAMES = {
    "np": np, "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "i8": np.int8, "i16": np.int16,
    "i32": np.int32, "i64": np.int64, "f32": np.float32,
    "from_bf16": from_bf16, "to_bf16": to_bf16, "from_f16": from_f16, "to_f16": to_f16,
    "permuted": permuted,
}  # fmt: skip
