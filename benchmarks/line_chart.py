"""One line chart as SVG, without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 50, 50

Point = tuple[float, float]


def line_chart(
    points: Sequence[Point], *, title: str, across: str, up: str, limit: float | None = None
) -> str:
    """A chart that begins at zero in both directions.

    Args:
        points: at least one; sorted by the first coordinate.
        across: what the first coordinate is, with its unit.
        up: what the second one is.
        limit: a line across that must not be reached, as far as it is in sight.
    """
    most_x = max(x for x, _ in points) or 1.0
    highest = max(y for _, y in points) or 1.0
    steps_y = steps(highest * 1.25)
    most_y = steps_y[-1]

    def at(x: float, y: float) -> str:
        across_px = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / most_x
        return f"{across_px:.1f},{_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * y / most_y:.1f}"

    view = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {view}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="28" font-size="15">{escape(title)}</text>',
    ]
    for y in steps_y:
        x_px, y_px = at(0, y).split(",")
        parts.append(
            f'<line x1="{x_px}" y1="{y_px}" x2="{_WIDTH - _RIGHT}" y2="{y_px}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 8}" y="{float(y_px) + 4:.1f}" text-anchor="end">{short(y)}</text>'
        )
    for x in [x for x in steps(most_x) if x <= most_x]:
        x_px, y_px = at(x, 0).split(",")
        parts.append(
            f'<text x="{x_px}" y="{float(y_px) + 18:.1f}" text-anchor="middle">{short(x)}</text>'
        )
    if limit is not None and limit <= most_y:
        (x1, y1), (x2, y2) = at(0, limit).split(","), at(most_x, limit).split(",")
        parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#c33" stroke-dasharray="6 4"/>'
        )
    line = " ".join(at(x, y) for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>')
    middle_x, middle_y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text x="{middle_x}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="16" y="{middle_y}" text-anchor="middle" '
        f'transform="rotate(-90 16 {middle_y})">{escape(up)}</text></svg>'
    )
    return "\n".join(parts) + "\n"


def steps(highest: float) -> list[float]:
    """Round numbers from zero to the first that is not below the highest; four to ten of them."""
    raw = highest / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1.0, 2.0, 5.0, 10.0) if m * magnitude >= raw)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def short(value: float) -> str:
    """12,000,000 as 12M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
