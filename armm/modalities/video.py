"""Clips as frames, frames as rows of pixels: a row is a unit, whose head also sees around it in the two frames before.

Axes: T frames, H rows, W columns, M listed units, F header fields.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from armm.embedders import UnitEmbedder
from armm.errors import InputError
from armm.heads import HeadConfig, Unit
from armm.modalities.image import Image
from armm.modalities.picture import pillow
from armm.modalities.reading import one_line, read_bytes
from armm.modality import Modality, Preview
from armm.sequence import Segment

SYMBOL_WIDTH = 8
SHOWN = 256  # pixels that a frame is enlarged to, about, in an MP4


@dataclass(frozen=True)
class Video(Modality):
    """Grey clips as (T, H, W) uint8 arrays, each value a level in `[0, levels)`.

    Attributes:
        size: (height, width) in pixels of every frame.
        max_frames: the longest clip; how many frames a clip has is coded.
        levels: how many values a pixel has, 2 to 256; 8-bit files are rounded to the nearest.
        fps: frames a second, of what `load` takes a file to have where it holds still, and of what `save` writes.
        head: the head; by default the causal convolution block.
        name: its name in a model.
    """

    size: tuple[int, int]
    max_frames: int = 16
    levels: int = 256
    fps: int = 10
    head: HeadConfig | None = None
    name: str = "video"

    bits_per = "dim"
    nats_per = "frame"
    suffix: ClassVar[str] = ".gif"
    suffixes: ClassVar[tuple[str, ...]] = (".gif", ".mp4", ".webm", ".mov", ".mkv", ".avi")

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))  # JSON and YAML have lists only
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"{self.name}.size is {list(self.size)}; expected [height, width] in pixels")
        if not 2 <= self.levels <= 256:
            raise InputError(f"{self.name}.levels is {self.levels}; expected 2 to 256")
        for key, value in (("max_frames", self.max_frames), ("fps", self.fps)):
            if value < 1:
                raise InputError(f"{self.name}.{key} is {value}; expected 1 or more")

    # ----------------------------------------------------------------- sizes

    @property
    def vocab(self) -> int:
        return self.levels

    @property
    def unit_symbols(self) -> int:
        return self.size[1]

    @property
    def header_sizes(self) -> tuple[int, ...]:
        """Frames less one, where clips can have several."""
        return (self.max_frames,) if self.max_frames > 1 else ()

    def header(self, coded: tuple[int, ...]) -> tuple[int, ...]:
        """(frames,)."""
        return (coded[0] + 1,) if coded else (1,)

    def coded_header(self, header: tuple[int, ...]) -> tuple[int, ...]:
        return (header[0] - 1,) if self.max_frames > 1 else ()

    def n_units(self, header: tuple[int, ...]) -> int:
        return header[0] * self.size[0]

    def n_nats_per(self, segment: Segment) -> int:
        return -(-segment.n_units // self.size[0])

    @property
    def views(self) -> tuple[str, ...]:  # type: ignore[override]
        """An MP4 too, where there is the package that writes it."""
        return (".mp4",) if find_spec("av") else ()

    @property
    def unit(self) -> Unit:
        height, width = self.size
        return Unit(
            vocab=self.levels,
            symbols=width,
            continuous=False,
            block=(1, width),
            whole_rows=True,
            frame_rows=height,
            values=self._values(),
        )

    def build_embedder(self, width: int) -> nn.Module:
        """Of the pixels, and of where and when the row stands."""
        return FrameRowEmbedder(self.levels, self.size, self.max_frames, width, self._values())

    def _values(self) -> Tensor:
        """(V, 1) how bright a level is, from -1 to 1."""
        return torch.linspace(-1, 1, self.levels)[:, None]

    def quantise(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 values 0 to 255 as the nearest of `levels` levels, as images have them."""
        return Image(size=self.size, levels=self.levels).quantise(pixels)

    def dequantise(self, clip: np.ndarray) -> np.ndarray:
        """Levels as uint8 values 0 to 255; `quantise` takes them back exactly."""
        return Image(size=self.size, levels=self.levels).dequantise(clip)

    # ------------------------------------------------------------------ data

    def encode(self, raw: np.ndarray) -> Segment:
        """A clip as rows.

        Raises InputError: not such an array, a level outside the range, another size, or too many frames.
        """
        self._check(raw)
        if len(raw) > self.max_frames:
            raise InputError(
                f"{self.name}: the clip has {len(raw)} frames, at most {self.max_frames} are allowed; cut it or raise "
                f"{self.name}.max_frames"
            )
        return Segment(self.name, self._rows(raw), header=(len(raw),))

    def encode_prompt(self, raw: np.ndarray) -> Segment:
        """The first frames of a clip, to be continued to `max_frames`.

        Raises InputError: as `encode` does, or nothing is left to continue.
        """
        self._check(raw)
        if len(raw) >= self.max_frames:
            raise InputError(
                f"{self.name}: the prompt has {len(raw)} frames, a clip has at most {self.max_frames}; cut it to fewer"
            )
        return Segment(self.name, self._rows(raw), header=(self.max_frames,))

    def decode(self, segment: Segment) -> np.ndarray:
        """The clip; pixels that the segment lacks are 0."""
        height, width = self.size
        symbols = np.zeros(segment.header[0] * height * width, dtype=np.uint8)
        symbols[: segment.length] = segment.flat().numpy()
        return symbols.reshape(-1, height, width)

    def decode_part(self, segment: Segment, n_done: int) -> tuple[np.ndarray | None, int]:
        """(T', H, W) levels of new frames, once they are complete."""
        frame = self.size[0] * self.size[1]
        first, last = n_done // frame, segment.length // frame
        if last <= first:
            return None, n_done
        return self.decode(segment)[first:last], last * frame

    def _rows(self, raw: np.ndarray) -> Tensor:
        return torch.from_numpy(raw.reshape(-1, self.size[1]).astype(np.int64))

    def _check(self, raw: Any) -> None:
        if not isinstance(raw, np.ndarray) or raw.dtype != np.uint8 or raw.ndim != 3:
            found = f"{raw.dtype} array {raw.shape}" if isinstance(raw, np.ndarray) else type(raw).__name__
            raise InputError(
                f"{self.name}: expected a (T, H, W) uint8 NumPy array of levels, got a {found}; convert it"
            )
        if not len(raw):
            raise InputError(f"{self.name}: the clip has no frames, expected at least one; leave it out")
        if raw.shape[1:] != self.size:
            found, wanted = (f"{h}x{w}" for h, w in (raw.shape[1:], self.size))
            raise InputError(f"{self.name}: frames are {found}, expected {wanted} (height x width); resize the clip")
        if int(raw.max()) >= self.levels:
            raise InputError(
                f"{self.name}: the clip has the level {int(raw.max())}, expected 0 to {self.levels - 1}; quantise it"
            )

    # ------------------------------------------------------------------ files

    def load(self, path: Path) -> np.ndarray:
        """Read a GIF, or whatever the av package reads. Frames that are a whole multiple of the size are averaged down.

        A frame that a GIF shows for longer is repeated, so that all of them last 1/fps.

        Raises InputError: damaged, no clip, of another size, or in colour.
        """
        content = read_bytes(path)
        frames = _read_gif(content, path, self.fps) if content[:3] == b"GIF" else _read_av(content, path)
        clip = np.stack([self._grey(frame, path) for frame in frames])
        return self.quantise(clip)

    def _grey(self, frame: np.ndarray, path: Path) -> np.ndarray:
        """(h, w, 3) uint8 -> (H, W) uint8."""
        spread = frame.max(axis=-1).astype(int) - frame.min(axis=-1)
        if np.percentile(spread, 99) > 24:  # less is what video codecs make of grey
            raise InputError(f"{path} is in colour, expected grey; convert it")
        height, width = self.size
        scale = frame.shape[0] // height
        if frame.shape[:2] != (scale * height, scale * width) or not scale:
            raise InputError(
                f"{path} has frames of {frame.shape[0]}x{frame.shape[1]}, expected {height}x{width} (height x width) "
                f"or a whole multiple; resize it, or train with another {self.name}.size"
            )
        blocks = frame.mean(axis=-1).reshape(height, scale, width, scale)
        return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)

    def save(self, raw: np.ndarray, path: Path) -> None:
        """Write a GIF of the very pixels; where the name ends in `.mp4` an enlarged H.264 clip."""
        self._check(raw)
        pixels = self.dequantise(raw)
        if path.suffix == ".mp4":
            return _write_mp4(_enlarged(pixels), path, self.fps)
        first, *others = (pillow().fromarray(frame) for frame in pixels)
        first.save(path, format="GIF", save_all=True, append_images=others, duration=1000 // self.fps, loop=0)

    def preview(self, raws: Sequence[np.ndarray]) -> Preview:
        """A row of frames for each clip."""
        height, width = self.size
        factor = max(1, 48 // max(height, width))
        most = max(len(raw) for raw in raws)
        sheet = np.full((len(raws) * (factor * height + 2), most * (factor * width + 2)), 64, dtype=np.uint8)
        for i, raw in enumerate(raws):
            for j, frame in enumerate(self.dequantise(raw)):
                top, left = i * (factor * height + 2), j * (factor * width + 2)
                large = frame.repeat(factor, axis=0).repeat(factor, axis=1)
                sheet[top : top + large.shape[0], left : left + large.shape[1]] = large
        return Preview("image", np.repeat(sheet[..., None], 3, axis=-1))


class FrameRowEmbedder(nn.Module):
    """Rows of frames into vectors: the pixels, and learned embeddings of the row and of the frame."""

    def __init__(self, levels: int, size: tuple[int, int], max_frames: int, width: int, values: Tensor) -> None:
        super().__init__()
        self.pixels = UnitEmbedder(levels, size[1], width, SYMBOL_WIDTH, values)
        self.row = nn.Parameter(torch.randn(size[0], width) * 0.1)
        self.frame = nn.Parameter(torch.randn(max_frames, width) * 0.1)

    def forward(self, symbols: Tensor, index: Tensor, header: Tensor) -> Tensor:
        """(M, K) symbols, (M,) index of each row in the clip, (M, F) header -> (M, width)."""
        n_rows = len(self.row)
        return self.pixels(symbols, index, header) + self.row[index % n_rows] + self.frame[index // n_rows]


# --------------------------------------------------------------------------------- files


def _read_gif(content: bytes, path: Path, fps: int) -> list[np.ndarray]:
    """(h, w, 3) uint8 frames, each 1/fps seconds."""
    library, frames = pillow(), []
    try:
        with library.open(io.BytesIO(content)) as picture:
            for number in range(picture.n_frames):
                picture.seek(number)
                lasts = picture.info.get("duration", 0) * fps / 1000
                frames += [np.asarray(picture.convert("RGB"))] * max(1, round(lasts))
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error on damaged data
        raise InputError(f"{path} is damaged or cut short: {one_line(error)}; fetch or save it again") from error
    return frames


def _read_av(content: bytes, path: Path) -> list[np.ndarray]:
    av = _av(str(path))
    try:
        with av.open(io.BytesIO(content)) as file:
            frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    except Exception as error:  # av.FFmpegError, and IndexError where there is no video
        raise InputError(f"{path} cannot be read as a clip: {one_line(error)}; convert it to GIF or MP4") from error
    if not frames:
        raise InputError(f"{path} holds no frames, expected at least one; remove it")
    return frames


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    """(T, H, W) with every pixel as a square, of an even size as H.264 wants it."""
    factor = 2 * max(1, SHOWN // (2 * max(pixels.shape[1:])))
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)


def _write_mp4(frames: np.ndarray, path: Path, fps: int) -> None:
    av = _av(str(path))
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(fps), options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = "yuv420p"  # what browsers play
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="gray").reformat(format="yuv420p")
            file.mux(stream.encode(picture))
        file.mux(stream.encode())


def _av(path: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"{path}: clips other than GIFs need the av package ({error}); pip install armm[video]"
        ) from error
    return av
