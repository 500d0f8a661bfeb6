"""Images as the codes of a learned tokenizer (`armm.fsq`): fewer symbols, and a picture that comes back only nearly.

Bits are those of the codes, "latent bits". They say nothing about the pixels' bits, and are not to be compared with
them.
Axes: h, w places of the code, n numbers of a code, V codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from armm.embedders import UnitEmbedder
from armm.errors import InputError
from armm.fsq import CONFIG_FILE, WEIGHTS_FILE, Autoencoder, from_files, read_files
from armm.heads import HeadConfig, Unit
from armm.modalities.image import Image
from armm.modality import Modality, Preview
from armm.sequence import Segment

SYMBOL_WIDTH = 16


@dataclass(frozen=True)
class LatentImage(Modality):
    """Pictures as rows of codes.

    Attributes:
        run: folder of the tokenizer's run (`armm train image/fsq`); a bundle keeps the tokenizer, and needs no folder.
        head: the head; by default the causal convolution block.
        trained: the tokenizer's two files. Training fills them in.
        name: its name in a model.
    """

    run: str = "runs/fsq/0"
    head: HeadConfig | None = None
    trained: tuple[bytes, bytes] | None = field(default=None, repr=False)
    name: str = "image"

    bits_per = "latent"
    nats_per = "latent_image"
    suffix: ClassVar[str] = ".png"
    suffixes: ClassVar[tuple[str, ...]] = Image.suffixes

    # ----------------------------------------------------------------- sizes

    @property
    def vocab(self) -> int:
        return self._net.config.n_codes

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) places of the code."""
        net, (height, width), _ = self._loaded()
        return height // net.config.factor, width // net.config.factor

    @property
    def unit_symbols(self) -> int:
        return self.grid[1]

    def header(self, coded: tuple[int, ...]) -> tuple[int, ...]:
        return self.grid[0], 1

    def coded_header(self, header: tuple[int, ...]) -> tuple[int, ...]:
        return ()

    def n_units(self, header: tuple[int, ...]) -> int:
        return self.grid[0]

    def n_nats_per(self, segment: Segment) -> int:
        return 1

    @property
    def unit(self) -> Unit:
        width = self.grid[1]
        return Unit(self.vocab, width, 1, False, (1, width), True, self._values())

    def build_embedder(self, width: int) -> nn.Module:
        return UnitEmbedder(self.vocab, self.unit_symbols, width, SYMBOL_WIDTH, self._values(), (self.grid[0], 1))

    # ------------------------------------------------------------------ data

    def encode(self, raw: np.ndarray) -> Segment:
        """A (H, W) or (H, W, 3) uint8 image as codes.

        Raises InputError: not such an image, or not of the tokenizer's size.
        """
        self.pixels.encode(raw)  # complains of what does not fit
        pixels = torch.from_numpy(np.ascontiguousarray(raw if raw.ndim == 3 else raw[..., None]))
        net, _, levels = self._loaded()
        with torch.no_grad():
            _, codes = net(to_pixels(pixels[None], levels))
        return Segment(self.name, codes[0], header=(self.grid[0], 1))

    def decode(self, segment: Segment) -> np.ndarray:
        """The image of the codes; places that the segment lacks are of the code 0."""
        net, _, levels = self._loaded()
        codes = torch.zeros(self.grid, dtype=torch.int64)
        codes.view(-1)[: segment.length] = segment.flat()
        with torch.no_grad():
            pixels = net.draw(net.quantiser.to_grid(codes[None]))
        image = from_pixels(pixels, levels)[0].numpy()
        return image[..., 0] if image.shape[-1] == 1 else image

    def load(self, path: Path) -> np.ndarray:
        return self.pixels.load(path)

    def quantise(self, pixels: np.ndarray) -> np.ndarray:
        return self.pixels.quantise(pixels)

    def save(self, raw: np.ndarray, path: Path) -> None:
        self.pixels.save(raw, path)

    def preview(self, raws: Sequence[np.ndarray]) -> Preview:
        return self.pixels.preview(raws)

    # ------------------------------------------------------------- tokenizer

    def fit(self, raws: Iterable[Any]) -> LatentImage:
        """With the tokenizer of `run`.

        Raises InputError: there is none.
        """
        if self.trained is not None:
            return self
        files = read_files(Path(self.run))
        return replace(self, trained=(files[CONFIG_FILE], files[WEIGHTS_FILE]))

    def files(self) -> dict[str, bytes]:
        return {} if self.trained is None else {CONFIG_FILE: self.trained[0], WEIGHTS_FILE: self.trained[1]}

    def with_files(self, files: Mapping[str, bytes]) -> LatentImage:
        if CONFIG_FILE not in files or WEIGHTS_FILE not in files:
            raise InputError(
                f"{self.name}: {CONFIG_FILE} or {WEIGHTS_FILE} is missing beside the model; fetch it again"
            )
        return replace(self, trained=(files[CONFIG_FILE], files[WEIGHTS_FILE]))

    # ---------------------------------------------------------------- private

    def _loaded(self) -> tuple[Autoencoder, tuple[int, int], int]:
        if self.trained is None:  # before training has begun, the files say what there is
            files = read_files(Path(self.run))
            return _read((files[CONFIG_FILE], files[WEIGHTS_FILE]), self.name)
        return _read(self.trained, self.name)

    @property
    def _net(self) -> Autoencoder:
        return self._loaded()[0]

    @property
    def pixels(self) -> Image:
        """The modality of the images that it makes codes of."""
        net, size, levels = self._loaded()
        assert net.image_channels in (1, 3)
        return Image(size=size, channels=1 if net.image_channels == 1 else 3, levels=levels, name=self.name)

    def _values(self) -> Tensor:
        """(V, n) where each code lies on the grid."""
        return self._net.quantiser.to_grid(torch.arange(self.vocab))


@lru_cache(maxsize=8)
def _read(trained: tuple[bytes, bytes], name: str) -> tuple[Autoencoder, tuple[int, int], int]:
    return from_files({CONFIG_FILE: trained[0], WEIGHTS_FILE: trained[1]}, name)


def to_pixels(images: Tensor, levels: int) -> Tensor:
    """(B, H, W, C) levels -> (B, C, H, W) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() * (2 / (levels - 1)) - 1


def from_pixels(pixels: Tensor, levels: int) -> Tensor:
    """The inverse, rounded, uint8."""
    return ((pixels.clamp(-1, 1) + 1) * ((levels - 1) / 2)).round().to(torch.uint8).permute(0, 2, 3, 1)
