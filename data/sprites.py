"""Creatures of 32×32 pixels from numpy alone: the built-in colour images of this project.

A creature is half a random blob, mirrored, in a few shades of one or two colours on black, lit from above and the
left, with an outline and eyes. It is a pure function of its number and a seed. To look at some:
`python data/sprites.py --out DIR`.
"""

from __future__ import annotations

import argparse
import colorsys
import sys
from pathlib import Path

import numpy as np

SIZE = 32
KINDS = ("beast", "plant", "gem")
HUES = {"beast": (0.0, 0.12), "plant": (0.25, 0.42), "gem": (0.5, 0.85)}
SHADES = 4


def _smooth(field: np.ndarray) -> np.ndarray:
    """Each place the mean of itself and its four neighbours."""
    padded = np.pad(field, 1, mode="edge")
    return (field + padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 5


def _palette(rng: np.random.Generator, kind: str) -> np.ndarray:
    """(2, SHADES, 3) uint8: two colours from dark to light."""
    low, high = HUES[kind]
    hues = rng.uniform(low, high, 2)
    shades = [
        [colorsys.hsv_to_rgb(hue, 0.85 - 0.1 * step, 0.35 + 0.2 * step) for step in range(SHADES)] for hue in hues
    ]
    return np.rint(np.array(shades) * 255).astype(np.uint8)


def make_sprite(number: int, seed: int = 0) -> tuple[str, np.ndarray]:
    """Kind and (32, 32, 3) uint8 pixels of creature `number`."""
    rng = np.random.default_rng((seed, number))
    kind = KINDS[number % len(KINDS)]
    half = rng.normal(size=(SIZE, SIZE // 2))
    texture = rng.normal(size=(SIZE, SIZE // 2))
    for _ in range(3):
        half, texture = _smooth(half), _smooth(texture)
    y, x = np.mgrid[:SIZE, : SIZE // 2]
    across, down = rng.uniform(8, 13), rng.uniform(9, 14)
    distance = ((SIZE // 2 - x) / across) ** 2 + ((y - SIZE / 2) / down) ** 2
    inside = half * 2.5 + 1 - distance > 0
    inside = np.concatenate([inside, inside[:, ::-1]], axis=1)
    inside[[0, -1]] = inside[:, [0, -1]] = False
    texture = np.concatenate([texture, texture[:, ::-1]], axis=1)
    down_and_right = np.mgrid[:SIZE, :SIZE].sum(axis=0)  # the light comes from above and the left
    light = (2 * SIZE - down_and_right) / (2 * SIZE) * SHADES + texture * 2
    shade = np.clip(light, 0, SHADES - 1).astype(int)
    colour = (texture > rng.uniform(0.0, 0.4)).astype(int)
    pixels = _palette(rng, kind)[colour, shade] * inside[..., None]
    rim = inside & ~(np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1) & np.roll(inside, -1, 1))
    pixels[rim] = pixels[rim] // 2
    eye_y, eye_x = int(rng.integers(11, 16)), int(rng.integers(2, 5))
    if kind == "beast":
        for side in (SIZE // 2 - eye_x - 1, SIZE // 2 + eye_x):
            pixels[eye_y : eye_y + 2, side] = (250, 250, 240)
            pixels[eye_y + 1, side] = (10, 10, 20)
    return kind, pixels.astype(np.uint8)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for PNG files")
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from PIL import Image

    for number in range(options.n):
        kind, pixels = make_sprite(number, options.seed)
        (options.out / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(options.out / kind / f"{number:04d}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
