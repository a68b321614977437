"""What tells one kept run from another: plain JSON data, compared key by key."""

from __future__ import annotations

from typing import Any


def differences(new: dict[str, Any], old: dict[str, Any]) -> str:
    """`KEY is NEW but was OLD` for each key that differs; empty where none does."""
    return "; ".join(
        f"{key} is {new.get(key, 'absent')!r} but was {old.get(key, 'absent')!r}"
        for key in dict.fromkeys((*new, *old))
        if new.get(key, ...) != old.get(key, ...)
    )
