"""Picture files: decoded to their last pixel, or one line that says what is wrong with them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from armm.errors import InputError
from armm.modalities.reading import one_line, read_bytes

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # none that runs another program, as EPS does
MAX_PIXELS = 2**26


def pillow() -> Any:
    """Pillow's `PIL.Image`.

    Raises InputError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f"pictures need the Pillow package ({error}); pip install armm[image]") from error
    return Image


def read_picture(path: Path) -> Picture:
    """A picture that was decoded to its last pixel, upright.

    Raises InputError: damaged or cut short, not a picture, animated, or of too many pixels.
    """
    content = read_bytes(path)
    library = pillow()
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow's complaints about harmless metadata, and about size, which is checked below
            warnings.simplefilter("ignore")
            picture = library.open(io.BytesIO(content), formats=FORMATS)
            _check_frame(picture, path)
            picture.load()  # to the last pixel, checksums too
            if picture.format == "PNG" and b"IEND\xaeB`\x82" not in content:
                raise OSError("its end is missing")
            return ImageOps.exif_transpose(picture)
    except InputError:
        raise
    except library.DecompressionBombError:
        raise InputError(f"{path} has more than {MAX_PIXELS:,} pixels; shrink it first") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path} is damaged or not a picture, whatever its name says; expected PNG, JPEG, BMP, GIF, WebP, TIFF or "
            "PPM; fetch it again or convert it"
        ) from None
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error on damaged data
        raise InputError(f"{path} is damaged or cut short: {one_line(error)}; fetch or save it again") from error


def _check_frame(picture: Picture, path: Path) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path} has {height}x{width} pixels (height x width), more than {MAX_PIXELS:,} in all; shrink it first"
        )
    if picture.mode == "I" and picture.format not in ("PNG", "PPM"):  # 32 bits of unknown scale
        raise InputError(f"{path} has 32-bit pixels, expected 8 or 16 bits; convert it to 8-bit PNG")
    n_frames = getattr(picture, "n_frames", 1)
    if n_frames > 1 and picture.format != "MPO":  # phones keep previews as further frames of an MPO
        raise InputError(f"{path} has {n_frames} frames, expected one picture; save the frame you want")


def sixteen_bit(picture: Picture, path: Path) -> np.ndarray:
    """(H, W) uint8 the upper bytes of 16-bit grey.

    Raises InputError: its values need more bits, or it is transparent.
    """
    values = np.asarray(picture)
    if picture.has_transparency_data or values.min() < 0 or values.max() > 0xFFFF:
        raise InputError(f"{path} has pixels of kind {picture.mode}, expected 8 or 16 bits; convert it to 8-bit PNG")
    return (values.astype(np.int64) >> 8).astype(np.uint8)
