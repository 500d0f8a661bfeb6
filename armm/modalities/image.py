"""Images as pixels, row strips or square patches, in raster order.

Pixels one by one are iGPT and PixelRNN (arXiv:1601.06759), strips are rows for a PixelCNN, patches lie between. The
symbols of a unit are its pixels row by row, the channels of a pixel (R, G, B) side by side. Where pixels share a place
of the head, they are side by side as channels are, and the places go row by row (space to depth).

Axes: H, W pixels; r, c rows and columns of units; h, w those of places in a unit, ph, pw those of pixels in a place; ch
channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from einops import rearrange
from torch import nn

from armm.embedders import UnitEmbedder
from armm.errors import InputError
from armm.heads import HeadConfig, Unit
from armm.modalities.picture import pillow, read_picture, sixteen_bit
from armm.modality import Modality, Preview
from armm.sequence import Segment

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SYMBOL_WIDTH = 8


@dataclass(frozen=True)
class Image(Modality):
    """Pictures as uint8 arrays, (H, W) for one channel and (H, W, 3) for three, each value a level in `[0, levels)`.

    Attributes:
        size: (height, width) in pixels of every image; null where it differs, and is coded.
        max_size: the largest (height, width) where it differs.
        channels: 1 for grey, 3 for RGB.
        levels: how many values a channel has, 2 to 256; 8-bit files are rounded to the nearest.
        block: (height, width) in pixels of a unit: [1, 1] pixels, [p, p] patches, [1, w] strips; null for whole rows,
            which need `size`.
        place: (height, width) in pixels of what the head computes at once: the larger, the less there is to compute, in
            training and in sampling, and the less its layers see of how the pixels of a place hang together.
        embedder_channels: channels of a convolution over a unit's pixels from which the backbone's input is made; 0 to
            make it of the pixels themselves.
        background: what to lay transparent pictures on; null to refuse them.
        head: the head; by default softmax at one symbol per unit and the causal convolution block for more.
        name: its name in a model.
    """

    size: tuple[int, int] | None = None
    max_size: tuple[int, int] | None = None
    channels: Literal[1, 3] = 1
    levels: int = 256
    block: tuple[int, int] | None = None
    place: tuple[int, int] = (1, 1)
    embedder_channels: int = 0
    background: Literal["black", "white"] | None = None
    head: HeadConfig | None = None
    name: str = "image"

    bits_per = "dim"
    nats_per = "image"
    suffix: ClassVar[str] = ".png"
    suffixes: ClassVar[tuple[str, ...]] = (
        *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    )

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise InputError(f"{self.name}.channels is {self.channels}; expected 1 (grey) or 3 (RGB)")
        if not 2 <= self.levels <= 256:
            raise InputError(f"{self.name}.levels is {self.levels}; expected 2 to 256")
        if self.embedder_channels < 0:
            raise InputError(f"{self.name}.embedder_channels is {self.embedder_channels}; it must be at least 0")
        if (self.size is None) == (self.max_size is None):
            raise InputError(
                f"{self.name}: set either size, where all images have one size, or max_size, where they differ"
            )
        for key in ("size", "max_size", "block", "place"):
            pair = getattr(self, key)
            if pair is None:
                continue
            object.__setattr__(self, key, tuple(pair))  # JSON and YAML have lists only
            if len(pair) != 2 or min(pair) < 1:
                raise InputError(
                    f"{self.name}.{key} is {list(pair)}; expected [height, width] in pixels, each at least 1"
                )
        if self.block is None and self.size is None:
            raise InputError(f"{self.name}.block: whole rows need one width; set block, such as [1, 8], or size")
        if any(pixels % own for pixels, own in zip(self._block, self.place, strict=True)):
            raise InputError(
                f"{self.name}.place is {list(self.place)}, which does not divide units of {_by(*self._block)} pixels; "
                "set a divisor of these, or another block"
            )
        self._check_fit(*self._largest, "size" if self.size else "max_size")

    # ----------------------------------------------------------------- sizes

    @property
    def vocab(self) -> int:
        return self.levels

    @property
    def unit_symbols(self) -> int:
        height, width = self._block
        return height * width * self.channels

    @property
    def symbol_channels(self) -> int:
        return self.channels * math.prod(self.place)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of units of the largest image."""
        return self._largest[0] // self._block[0], self._largest[1] // self._block[1]

    @property
    def header_sizes(self) -> tuple[int, ...]:
        """Rows and columns less one, where sizes differ."""
        return () if self.size else self.grid

    def header(self, coded: tuple[int, ...]) -> tuple[int, ...]:
        """(rows, columns) of units."""
        return self.grid if self.size else (coded[0] + 1, coded[1] + 1)

    def coded_header(self, header: tuple[int, ...]) -> tuple[int, ...]:
        return () if self.size else (header[0] - 1, header[1] - 1)

    def n_units(self, header: tuple[int, ...]) -> int:
        return header[0] * header[1]

    def n_nats_per(self, segment: Segment) -> int:
        return 1

    @property
    def unit(self) -> Unit:
        height, width = self._places
        return Unit(
            vocab=self.levels,
            symbols=self.unit_symbols,
            channels=self.symbol_channels,
            continuous=False,
            block=(height, width),
            whole_rows=self.size is not None and height == 1 and self._block[1] == self.size[1],
            values=self._values(),
        )

    def build_embedder(self, width: int) -> nn.Module:
        """Of the pixels, and of where the unit lies."""
        n, values, block = self.unit_symbols, self._values(), self._places
        return UnitEmbedder(
            self.levels, n, width, SYMBOL_WIDTH, values, self.grid, block=block, channels=self.embedder_channels
        )

    # ------------------------------------------------------------------ data

    def encode(self, raw: np.ndarray) -> Segment:
        """An image as units.

        Raises InputError: not such an array, a level outside the range, or a size that does not fit.
        """
        self._check_array(raw)
        height, width = raw.shape[:2]
        if self.size and (height, width) != self.size:
            raise InputError(
                f"{self.name}: the image is {_by(height, width)}, expected {_by(*self.size)} (height x width); resize "
                f"or crop it, or train with {self.name}.size: [{height}, {width}]"
            )
        self._check_fit(height, width, "the image")
        if height > self._largest[0] or width > self._largest[1]:
            raise InputError(
                f"{self.name}: the image is {_by(height, width)}, at most {_by(*self._largest)} (height x width) is "
                f"allowed; shrink it or train with a larger {self.name}.max_size"
            )
        return Segment(self.name, self._units(raw), header=(height // self._block[0], width // self._block[1]))

    def encode_prompt(self, raw: np.ndarray) -> Segment:
        """The top rows of an image, as many whole rows of units as there are, to be continued to the full height.

        Raises InputError: they are no such rows, or the height of the whole is not known because sizes differ.
        """
        if self.size is None:
            raise InputError(
                f"{self.name}: the top of an image can only be continued by a model of one size; set {self.name}.size"
            )
        self._check_array(raw)
        height, width = raw.shape[:2]
        step = self._block[0]
        if width != self.size[1] or not 0 < height < self.size[0] or height % step:
            rows = "1" if step == 1 else f"a multiple of {step}"
            raise InputError(
                f"{self.name}: the prompt is {_by(height, width)}, expected the top rows of {_by(*self.size)} (height "
                f"x width): {rows} to {self.size[0] - step} rows of {self.size[1]} pixels; crop it"
            )
        return Segment(self.name, self._units(raw), header=self.grid)

    def encode_masked(self, raw: np.ndarray, keep: np.ndarray) -> Segment:
        """A whole image some of whose pixels are unknown: the symbols of these are `vocab`, as `generate` fills them.

        keep: (H, W) bool: the pixels that are known; the values of the others mean nothing.

        Raises InputError: as `encode` does, or a mask that is no such array.
        """
        segment = self.encode(raw)
        if not isinstance(keep, np.ndarray) or keep.dtype != np.bool_:
            raise InputError(f"{self.name}: expected a (H, W) bool NumPy array of the known pixels; convert the mask")
        if keep.shape != raw.shape[:2]:
            raise InputError(
                f"{self.name}: the mask is {_by(*keep.shape)}, the image {_by(*raw.shape[:2])} (height x width); make "
                "both one size"
            )
        known = self._units(np.broadcast_to(keep[..., None], (*keep.shape, self.channels)))
        return replace(segment, symbols=torch.where(known.bool(), segment.symbols, self.vocab))

    def decode(self, segment: Segment) -> np.ndarray:
        """The image; pixels that the segment lacks are 0."""
        rows, columns = segment.header
        (height, width), (place_height, place_width) = self._places, self.place
        symbols = np.zeros(rows * columns * self.unit_symbols, dtype=np.uint8)
        symbols[: segment.length] = segment.flat().numpy()
        image = rearrange(
            symbols,
            "(r c h w ph pw ch) -> (r h ph) (c w pw) ch",
            r=rows,
            c=columns,
            h=height,
            w=width,
            ph=place_height,
            pw=place_width,
        )
        return image[..., 0] if self.channels == 1 else image

    def decode_part(self, segment: Segment, n_done: int) -> tuple[np.ndarray | None, int]:
        """(H, W) or (H, W, channels) levels of new rows of units, once they are complete."""
        row = segment.header[1] * self.unit_symbols
        first, last = n_done // row, segment.length // row
        if last <= first:
            return None, n_done
        return self.decode(segment)[first * self._block[0] : last * self._block[0]], last * row

    def quantise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 values 0 to 255 as the nearest of `levels` levels, uint8."""
        return np.rint(np.arange(256) * (self.levels - 1) / 255).astype(np.uint8)[pixels]

    def dequantise(self, image: np.ndarray) -> np.ndarray:
        """Levels as uint8 values 0 to 255; `quantise` takes them back exactly."""
        return np.rint(np.arange(self.levels) * 255 / (self.levels - 1)).astype(np.uint8)[image]

    def load(self, path: Path) -> np.ndarray:
        """Read a picture file of any size, by its content, whatever its name says.

        Palettes are resolved, 16-bit values cut to their upper 8 bits, cameras' rotation flags obeyed. Grey becomes
        three equal channels where three are wanted; colour is never turned into grey.

        Raises InputError: damaged or cut short, not a picture, animated, too many pixels, transparent without
            `background`, or in colour where one channel is wanted.
        """
        picture = read_picture(path)
        pixels = sixteen_bit(picture, path) if picture.mode.startswith("I") else self._eight_bit(picture, path)
        if self.channels == 3:
            pixels = np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels
        elif pixels.ndim == 3:
            if (pixels != pixels[..., :1]).any():
                raise InputError(
                    f"{path} is in colour, expected grey; convert it to grey, or train with {self.name}.channels: 3"
                )
            pixels = pixels[..., 0]
        return self.quantise(pixels)

    def save(self, raw: np.ndarray, path: Path) -> None:
        """Write a PNG of 8 bits a channel."""
        self._check_array(raw)
        pillow().fromarray(self.dequantise(raw)).save(path, format="PNG")

    def preview(self, raws: Sequence[np.ndarray]) -> Preview:
        """A grid, about square, each image enlarged by a whole factor to 64 pixels or so, with a line between them."""
        pictures = [self.dequantise(raw) for raw in raws]
        height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
        factor = max(1, 64 // max(height, width))
        columns = math.ceil(math.sqrt(len(pictures)))
        step = (factor * height + 2, factor * width + 2)
        grid = np.full((math.ceil(len(pictures) / columns) * step[0], columns * step[1], 3), 64, dtype=np.uint8)
        for i, picture in enumerate(pictures):
            large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
            top, left = i // columns * step[0], i % columns * step[1]
            channels = large if large.ndim == 3 else large[..., None]
            grid[top : top + large.shape[0], left : left + large.shape[1]] = channels
        return Preview("image", grid)

    # ---------------------------------------------------------------- private

    @property
    def _largest(self) -> tuple[int, int]:
        largest = self.size or self.max_size
        assert largest is not None
        return largest

    @property
    def _block(self) -> tuple[int, int]:
        if self.block is not None:
            return self.block
        assert self.size is not None
        return self.place[0], self.size[1]

    @property
    def _places(self) -> tuple[int, int]:
        """(height, width) of a unit in places."""
        return self._block[0] // self.place[0], self._block[1] // self.place[1]

    def _values(self) -> torch.Tensor:
        """(V, 1) levels as numbers from -1 to 1."""
        return torch.linspace(-1, 1, self.levels)[:, None]

    def _units(self, raw: np.ndarray) -> torch.Tensor:
        """(r c, K) the units of whole rows of units."""
        (bh, bw), (h, w), (ph, pw) = self._block, self._places, self.place
        # a fifth of the time that rearrange takes, for every image that training reads
        units = raw.reshape(len(raw) // bh, h, ph, raw.shape[1] // bw, w, pw, -1).transpose(0, 3, 1, 4, 2, 5, 6)
        return torch.from_numpy(units.reshape(-1, self.unit_symbols).astype(np.int64))

    def _check_array(self, raw: Any) -> None:
        wanted = "(H, W)" if self.channels == 1 else "(H, W, 3)"
        if not isinstance(raw, np.ndarray) or raw.dtype != np.uint8:
            found = f"{raw.dtype} array" if isinstance(raw, np.ndarray) else type(raw).__name__
            raise InputError(f"{self.name}: expected a {wanted} uint8 NumPy array of levels, got a {found}; convert it")
        if raw.ndim != (2 if self.channels == 1 else 3) or raw.shape[2:] not in ((), (3,)) or 0 in raw.shape:
            raise InputError(
                f"{self.name}: the array is {raw.shape}, expected {wanted}; reshape it or change {self.name}.channels"
            )
        if raw.max() >= self.levels:
            raise InputError(
                f"{self.name}: the array holds {raw.max()}, expected levels below {self.levels}; use quantise() on "
                "8-bit values"
            )

    def _check_fit(self, height: int, width: int, what: str) -> None:
        """Refuse a size that the unit does not divide, naming the nearest that fit."""
        if height % self._block[0] == 0 and width % self._block[1] == 0:
            return
        smaller, larger = zip(*map(_multiples, (height, width), self._block, self._largest), strict=True)
        sizes = [_by(*size) for size in dict.fromkeys([smaller, larger])]
        raise InputError(
            f"{self.name}: {what} is {_by(height, width)}, which units of {_by(*self._block)} do not fill; the nearest "
            f"that fit: {', '.join(sizes)} (height x width)"
        )

    def _eight_bit(self, picture: Picture, path: Path) -> np.ndarray:
        """(H, W) or (H, W, 3) uint8 of a picture of any 8-bit kind."""
        if picture.has_transparency_data:
            rgba = picture.convert("RGBA")
            if rgba.getchannel("A").getextrema()[0] != 255:
                if self.background is None:
                    raise InputError(
                        f"{path} is transparent in places, expected an opaque picture; flatten it, or set "
                        f"{self.name}.background: black or white"
                    )
                rgba = pillow().alpha_composite(pillow().new("RGBA", rgba.size, self.background), rgba)
            return np.asarray(rgba.convert("RGB"))
        if picture.mode in ("1", "L"):
            return np.asarray(picture.convert("L"))
        if picture.mode in ("P", "RGB", "RGBA", "LA", "RGBX", "CMYK", "YCbCr", "HSV"):
            return np.asarray(picture.convert("RGB"))
        raise InputError(
            f"{path} has pixels of kind {picture.mode}, expected grey, RGB or a palette; convert it to 8-bit PNG"
        )


def _multiples(length: int, step: int, most: int) -> tuple[int, int]:
    """The multiples of `step` below and above, or twice the same where one does not exist."""
    below, above = length // step * step, -(-length // step) * step
    return below or above, above if above <= most or not below else below


def _by(*sizes: int) -> str:
    return "x".join(map(str, sizes))
