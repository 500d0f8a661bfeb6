"""An image tokenizer that is learned: a convolutional autoencoder whose code is rounded (FSQ, arXiv:2309.15505).

Every place of the code is a vector of a few numbers, each rounded to one of so many levels; the code book is the grid
of all of them, so nothing collapses and nothing is looked up. Rounding has the gradient of the identity.
Axes: B images, C channels, H, W pixels, h, w places of the code, n numbers of a code.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from armm.errors import InputError

CONFIG_FILE, WEIGHTS_FILE = "tokenizer.json", "tokenizer.safetensors"


@dataclass(frozen=True)
class FSQ:
    """An autoencoder with a rounded code.

    Attributes:
        levels: of each number of a code; their product is the number of codes. The paper's: 8, 5, 5, 5 for 1,000.
        factor: pixels of a place of the code, in height and in width: 2, 4, 8.
        channels: of the convolutions.
        n_blocks: residual blocks at each size.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)
    factor: int = 4
    channels: int = 64
    n_blocks: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels or min(self.levels) < 2 or self.n_codes > 1 << 16:
            raise InputError(
                f"levels {list(self.levels)}: expected numbers of at least 2 whose product is at most 65536"
            )
        if self.factor < 2 or self.factor & (self.factor - 1):
            raise InputError(f"factor is {self.factor}, it must be a power of 2 and at least 2")
        if self.channels < 1 or self.n_blocks < 0:
            raise InputError("channels must be at least 1, n_blocks at least 0")

    @property
    def n_codes(self) -> int:
        return math.prod(self.levels)

    def build(self, image_channels: int) -> Autoencoder:
        return Autoencoder(self, image_channels)


class Quantiser(nn.Module):
    """Numbers into the nearest levels, and these into one integer and back."""

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer(
            "basis", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]), persistent=False
        )

    def forward(self, z: Tensor) -> Tensor:
        """(*, n) any numbers -> (*, n) in [-1, 1], on the grid; the gradient passes the rounding unchanged."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(z.float() + torch.atanh(offset / half)) * half - offset
        return (bounded + (bounded.round() - bounded).detach()) / (self.levels // 2)

    def to_codes(self, grid: Tensor) -> Tensor:
        """(*, n) on the grid -> (*) int64."""
        return ((grid * (self.levels // 2)).round().long() + self.levels // 2).mul(self.basis).sum(-1)

    def to_grid(self, codes: Tensor) -> Tensor:
        """(*) int64 -> (*, n) on the grid."""
        digits = torch.div(codes[..., None], self.basis, rounding_mode="floor") % self.levels
        return (digits - self.levels // 2).float() / (self.levels // 2)


class Residual(nn.Module):
    """x + two 3×3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Autoencoder(nn.Module):
    """Pixels in [-1, 1] to codes and back."""

    def __init__(self, config: FSQ, image_channels: int) -> None:
        super().__init__()
        self.config, self.image_channels = config, image_channels
        c, n = config.channels, len(config.levels)
        steps = config.factor.bit_length() - 1

        def blocks() -> list[nn.Module]:
            return [Residual(c) for _ in range(config.n_blocks)]

        down = [part for _ in range(steps) for part in (nn.Conv2d(c, c, 4, stride=2, padding=1), *blocks())]
        self.encoder = nn.Sequential(nn.Conv2d(image_channels, c, 3, padding=1), *down, nn.SiLU(), nn.Conv2d(c, n, 1))
        up = [
            part
            for _ in range(steps)
            for part in (*blocks(), nn.Upsample(scale_factor=2.0), nn.Conv2d(c, c, 3, padding=1))
        ]
        last = nn.Conv2d(c, image_channels, 3, padding=1)
        self.decoder = nn.Sequential(nn.Conv2d(n, c, 3, padding=1), *up, nn.SiLU(), last)
        self.quantiser = Quantiser(config.levels)

    def grid(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, n) on the grid."""
        return self.quantiser(self.encoder(pixels).permute(0, 2, 3, 1))

    def draw(self, grid: Tensor) -> Tensor:
        """(B, h, w, n) -> (B, C, H, W)."""
        return self.decoder(grid.permute(0, 3, 1, 2))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> what comes back, and the (B, h, w) codes."""
        grid = self.grid(pixels)
        return self.draw(grid), self.quantiser.to_codes(grid)


def to_files(net: Autoencoder, size: tuple[int, int], levels: int) -> dict[str, bytes]:
    """A trained autoencoder as files, with the size and the levels of the images it is for."""
    about = {
        "fsq": asdict(net.config),
        "image_channels": net.image_channels,
        "size": list(size),
        "image_levels": levels,
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    return {CONFIG_FILE: json.dumps(about).encode(), WEIGHTS_FILE: save_tensors(weights)}


def from_files(files: dict[str, bytes], what: str) -> tuple[Autoencoder, tuple[int, int], int]:
    """The inverse: autoencoder, size and levels of its images.

    Raises InputError: they are damaged; the message says of `what`.
    """
    try:
        about = json.loads(files[CONFIG_FILE])
        net = FSQ(**about["fsq"]).build(int(about["image_channels"]))
        net.load_state_dict(load_tensors(files[WEIGHTS_FILE]))
        size = (int(about["size"][0]), int(about["size"][1]))
        return net.eval().requires_grad_(False), size, int(about["image_levels"])
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        raise InputError(f"{what}: the tokenizer is damaged ({str(error)[:80]}); train it again") from error
    except Exception as error:  # of safetensors, which has its own
        raise InputError(f"{what}: {WEIGHTS_FILE} is damaged ({str(error)[:80]}); train it again") from error


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a trained tokenizer, in a run's folder or in its folder `tokenizer`.

    Raises InputError: there are none.
    """
    for place in (folder, folder / "tokenizer"):
        if (place / CONFIG_FILE).is_file() and (place / WEIGHTS_FILE).is_file():
            return {name: (place / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)}
    raise InputError(f"{folder} holds no trained tokenizer; make one: armm train image/fsq --run_dir={folder}")
