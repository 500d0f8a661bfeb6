"""Line charts as SVG text, to stand in a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 26, 40  # margins around the plot

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: in the legend; none to leave it out.
        points: (x, y), x ascending.
        style: its class in the page's style sheet.
        dots: whether the points are marked.
    """

    label: str
    points: Points
    style: str
    dots: bool = False


def smooth(points: Points, keep: float = 0.8) -> list[tuple[float, float]]:
    """The exponential moving average, without the pull towards zero at its beginning."""
    average, weight, smoothed = 0.0, 0.0, []
    for x, y in points:
        average, weight = keep * average + (1 - keep) * y, keep * weight + (1 - keep)
        smoothed.append((x, average / weight))
    return smoothed


def ticks(low: float, high: float, at_most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, a power of ten times 1, 2 or 5 apart."""
    assert high > low
    step = 10.0 ** math.floor(math.log10((high - low) / at_most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (factor * step) <= at_most)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def line_chart(title: str, lines: Sequence[Line], x_label: str, y_range: tuple[float, float], about: str) -> str:
    """A chart; what lies outside `y_range` is cut off.

    Args:
        title: above it, with the unit of y.
        about: what it shows, for those who cannot see it.
    """
    end = max(x for line in lines for x, _ in line.points)
    low, high = y_range
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return x / end * width, (high - y) / (high - low) * height

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(about)}">']
    parts.append(f'<text class="name" x="0" y="13">{escape(title)}</text>')
    for value in ticks(low, high):
        y = TOP + place(0, value)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(0, end, 5):
        x = LEFT + place(value, 0)[0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{value:,.0f}</text>')
    parts.append(f'<text x="{LEFT + width / 2:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
    # an svg inside cuts off what leaves the plot, but not the last dot
    parts.append(f'<svg x="{LEFT}" y="{TOP}" width="{width + 4}" height="{height}">')
    for line in lines:
        path = [place(x, y) for x, y in line.points]
        parts.append(f'<polyline class="{line.style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in path)}"/>')
        if line.dots:
            parts += [f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in path]
    parts.append("</svg>")
    parts.append("</svg>")
    return "".join(parts)


def legend(lines: Sequence[Line]) -> str:
    """The labels of lines, each with a piece of its line, as HTML that wraps."""
    parts = []
    for line in (line for line in lines if line.label):
        piece = f'<line class="{line.style}" x2="24" y1="5" y2="5"/>'
        swatch = f'<svg class="chart swatch" viewBox="0 0 24 10" aria-hidden="true">{piece}</svg>'
        parts.append(f'<span class="key">{swatch}{escape(line.label)}</span>')
    return " ".join(parts)
