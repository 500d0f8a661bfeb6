"""How many bits a picture takes as a file: PNG and lossless WebP, what a model of images is set against."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from armm.errors import InputError


def codec_bits(images: Sequence[np.ndarray]) -> dict[str, float]:
    """Bits a dimension of (H, W) or (H, W, 3) uint8 images as whole files, headers included, by kind of file.

    `png` is as Pillow's `optimize` makes it, `png_palette` the smaller of that and, of pictures of up to 256 colours,
    of one with a palette; `webp` is lossless, at the highest effort.

    Raises InputError: there are no images, or Pillow is missing or cannot write WebP.
    """
    if not len(images):
        raise InputError("there are no pictures to compress; give a test split some")
    try:
        from PIL import Image, features
    except ImportError as error:
        raise InputError(f"picture files need the Pillow package ({error}); pip install armm[image]") from error
    if not features.check("webp"):
        raise InputError("this Pillow cannot write WebP; install another build of it")
    n_dims = sum(image.size for image in images)
    pictures = [Image.fromarray(image) for image in images]
    kinds: dict[str, Callable[[Any], int]] = {"png": _png, "png_palette": _png_palette, "webp": _webp}
    return {name: 8 * sum(map(n_bytes, pictures)) / n_dims for name, n_bytes in kinds.items()}


def _png(picture: Any) -> int:
    return _size(picture, format="PNG", optimize=True)


def _png_palette(picture: Any) -> int:
    colours = picture.getcolors(256)
    if picture.mode != "RGB" or colours is None:
        return _png(picture)
    indexed = picture.quantize(len(colours))
    assert np.array_equal(np.asarray(indexed.convert("RGB")), np.asarray(picture)), "a palette loses nothing"
    return min(_png(picture), _png(indexed))


def _webp(picture: Any) -> int:
    return _size(picture, format="WEBP", lossless=True, quality=100, method=6)


def _size(picture: Any, format: str, **options: Any) -> int:
    file = io.BytesIO()
    picture.save(file, format=format, **options)
    return len(file.getvalue())
