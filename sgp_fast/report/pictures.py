"""Rendered frames as data addresses, as they came where the page has room, else smaller and as JPEG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from .._optional import require

BUDGET = 1_900_000
"""Characters that all pictures may take of a page of at most 3 MB."""

SMALLER = ((400, 85), (320, 80), (240, 72), (160, 60), (96, 45))
"""Largest width and JPEG quality, tried in turn."""


def addresses(pictures: Sequence[bytes], budget: int = BUDGET) -> list[str] | None:
    """`data:` addresses of PNG files, in order, in `budget` characters together; None where even the smallest do not fit."""
    encoded = [_address("png", picture) for picture in pictures]
    if sum(map(len, encoded)) <= budget:
        return encoded
    for width, quality in SMALLER:
        encoded = [_address("jpeg", _shrink(picture, width, quality)) for picture in pictures]
        if sum(map(len, encoded)) <= budget:
            return encoded
    return None


def _address(kind: str, picture: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _shrink(picture: bytes, width: int, quality: int) -> bytes:
    image = require("PIL.Image", extra="report").open(io.BytesIO(picture)).convert("RGB")  # comes with matplotlib
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
