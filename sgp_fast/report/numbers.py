"""Numbers as a reader wants them: three significant digits, thousands apart, true minus signs, units that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "–"
# The 80th percentile of a timing over the 20th, above which a ratio that is made of it means little.
WIDE_SPREAD = 1.5
DISTURBED = "something else ran on this machine; measure again on a quiet one"


def number(value: float | None) -> str:
    """884, 38.2, 0.312, 12,135, −64; a dash where there is none."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e7:
        text = f"{value:.2e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
        mantissa, exponent = text.split("e")
        text = f"{mantissa} × 10{_superscript(exponent)}"
    else:
        decimals = max(0, 2 - math.floor(math.log10(size)))
        text = f"{value:,.{decimals}f}"
    return text.replace("-", "−")


def alike(values: Sequence[float | None]) -> list[str]:
    """Numbers to be compared, all with the decimals that the largest needs: 884, 774, 38."""
    sizes = [abs(value) for value in values if value is not None and math.isfinite(value)]
    largest = max(sizes, default=0.0)
    if not 1e-3 <= largest < 1e7:
        return [number(value) for value in values]
    decimals = max(0, 2 - math.floor(math.log10(largest)))
    return [
        # Adding zero turns a rounded −0 into 0.
        f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "−")
        if value is not None and math.isfinite(value)
        else number(value)
        for value in values
    ]


def seconds(value: float | None) -> str:
    """3 µs, 12.1 ms, 4.2 s, 6 min 10 s, 2 h 5 min."""
    if value is None or not math.isfinite(value):
        return NONE
    if value < 1e-3:
        return f"{number(value * 1e6)} µs"
    if value < 1:
        return f"{number(value * 1e3)} ms"
    if value < 60:
        return f"{number(value)} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def wide_spread(low: float | None, high: float | None) -> str | None:
    """“from 704 ms to 20.5 s”, the 20th and 80th percentile of a timing, where far apart; None where it is steady."""
    if low is None or high is None or high <= WIDE_SPREAD * low:
        return None
    return f"from {seconds(low)} to {seconds(high)}"


def ratio(value: float | None) -> str:
    """1.2×, 52×, 1,270×."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.1f}×" if value < 10 else f"{value:,.0f}×"


def _superscript(digits: str) -> str:
    return digits.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
