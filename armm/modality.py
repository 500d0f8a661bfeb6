"""The contract of a modality: everything the library has to know about one kind of data, in one file each.

A plug-in subclasses `Modality` as a frozen dataclass, states an alphabet and turns its data into symbols and back.
`armm check-modality package.Class` then runs every law of the library on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from torch import nn

from armm.embedders import TokenEmbedder, UnitEmbedder
from armm.errors import InputError
from armm.heads import Categorical, CausalConv, Head, HeadConfig, Unit
from armm.sequence import Segment

ENTRY_POINTS = "armm.modalities"


@dataclass(frozen=True)
class Preview:
    """Something to look at or listen to: a str, a (H, W, 3) uint8 array, or a (T,) float32 waveform in [-1, 1]."""

    kind: Literal["text", "image", "audio"]
    data: Any
    sample_rate: int = 0


class Modality(ABC):
    """One kind of data as symbols.

    A subclass is a frozen dataclass whose fields are the keys of a recipe. The attributes below may be fields,
    properties or class attributes.

    Attributes:
        name: its name in a model; the model sets it to the key it is listed under.
        vocab: number of values of a symbol.
        unit_symbols: K, symbols per unit.
        symbol_channels: consecutive symbols of one place (R, G, B); divides `unit_symbols`.
        ended: the length is coded, as an end decision before each unit. Otherwise `n_units` gives it, or the segment
            runs on for as long as anyone wants (a window of a corpus).
        max_units: at most so many units in a segment; only for `ended` modalities.
        header_sizes: alphabet size of every header field that is coded. A header that never changes is not coded.
        bits_per: the natural unit of this data, singular: bits are reported as `bits_per_<bits_per>`.
        nats_per: the same for nats.
        suffix: the file name ending that `save` writes, with the dot.
        suffixes: the endings that `load` reads.
        views: further endings that `save` writes, beside `suffix`: what can be looked at or listened to anywhere.
        head: which head; `None` for softmax at one symbol per unit and the causal convolution block for more.
    """

    name: str
    vocab: int
    unit_symbols: int = 1
    symbol_channels: int = 1
    ended: bool = False
    max_units: int | None = None
    header_sizes: tuple[int, ...] = ()
    bits_per: str = "symbol"
    nats_per: str = "symbol"
    suffix: ClassVar[str] = ".txt"
    suffixes: ClassVar[tuple[str, ...]] = ()
    views: ClassVar[tuple[str, ...]] = ()
    head: HeadConfig | None = None

    def named(self, name: str) -> Self:
        """The same modality under another name."""
        twin = copy(self)
        object.__setattr__(twin, "name", name)  # a copy nobody else holds yet, of a class that may be frozen
        return twin

    # ------------------------------------------------------------------ data

    @abstractmethod
    def encode(self, raw: Any) -> Segment:
        """Raw data as a segment named `self.name`.

        Raises InputError: the data does not fit this modality.
        """

    @abstractmethod
    def decode(self, segment: Segment) -> Any:
        """The raw data of a segment; of what is there, where a segment was cut short."""

    def encode_prompt(self, raw: Any) -> Segment:
        """The beginning of a segment, to be continued: the top of an image, the first seconds of a clip."""
        return self.encode(raw)

    def parse(self, text: str) -> Any:
        """Raw data from a command line argument: a file's path where files are read, otherwise the data itself."""
        return self.load(Path(text)) if self.suffixes else text

    @property
    def is_named_by_path(self) -> bool:
        """Whether its data is given as the path of a file, in arguments and in manifests, rather than as itself."""
        return bool(self.suffixes) and type(self).parse is Modality.parse

    def load(self, path: Path) -> Any:
        """Read raw data from a file.

        Raises InputError: the file is not what it should be; the message names it.
        """
        raise InputError(f"{path}: the modality {self.name!r} does not read files")

    def save(self, raw: Any, path: Path) -> None:
        """Write raw data to a file; of the kind that its ending says, where there are `views`."""
        path.write_text(f"{raw}\n", encoding="utf-8")

    def preview(self, raws: Sequence[Any]) -> Preview:
        """Several raw data side by side, for logs and reports."""
        return Preview("text", "\n\n".join(str(raw) for raw in raws))

    def symbol_bytes(self) -> list[bytes] | None:
        """What each symbol is of a UTF-8 text, by value, where symbols are pieces of one; None where they are not.

        With it come stop strings, streaming by characters and grammar constraints.
        """
        return None

    @property
    def sound_rate(self) -> int | None:
        """Samples a second of raw data that is sound; None where it is something else. With it comes `pcm`."""
        return None

    def pcm(self, raw: Any) -> bytes:
        """Sound as little-endian 16-bit samples, for a player."""
        raise NotImplementedError("only sound has samples")

    def decode_part(self, segment: Segment, n_done: int) -> tuple[Any, int]:
        """What the symbols from `n_done` on add to the raw data, for streaming.

        Args:
            segment: of what is there. n_done: symbols that earlier parts have shown.

        Returns: raw data, None where there is nothing whole yet, and how many symbols are shown with it.
        """
        return None, n_done

    # ----------------------------------------------------------------- sizes

    def n_units(self, header: tuple[int, ...]) -> int | None:
        """How many units a segment with this header has; None where the header does not say."""
        return None

    def header(self, coded: tuple[int, ...]) -> tuple[int, ...]:
        """The header from its coded fields, each in `[0, header_sizes[i])`; from none where it never changes."""
        return coded

    def coded_header(self, header: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of `header`."""
        return header

    def n_bits_per(self, segment: Segment) -> int:
        """How many natural units (`bits_per`) a segment has."""
        return segment.length

    def n_nats_per(self, segment: Segment) -> int:
        """How many units of `nats_per` a segment has."""
        return segment.length

    # --------------------------------------------------------------- modules

    @property
    def unit(self) -> Unit:
        """What a head has to know about the units."""
        return Unit(self.vocab, self.unit_symbols, self.symbol_channels)

    def build_embedder(self, width: int) -> nn.Module:
        """A module from units to vectors: `(M, K) symbols, (M,) index in the segment, (M, F) header -> (M, width)`."""
        if self.unit_symbols == 1:
            return TokenEmbedder(self.vocab, width)
        return UnitEmbedder(self.vocab, self.unit_symbols, width)

    def build_head(self, width: int) -> Head:
        """The head for a backbone of this width."""
        config = self.head or (Categorical() if self.unit_symbols == 1 else CausalConv())
        return config.build(width, self.unit)

    # ----------------------------------------------------- fitted vocabulary

    def fit(self, raws: Iterable[Any]) -> Modality:
        """This modality with whatever it learns from training data (a vocabulary); itself where it learns nothing."""
        return self

    def files(self) -> dict[str, bytes]:
        """What `fit` learned, as files of a bundle."""
        return {}

    def with_files(self, files: Mapping[str, bytes]) -> Modality:
        """This modality with what `files` once returned."""
        return self


def discover() -> dict[str, type[Modality]]:
    """Every installed modality by name, from the entry-point group `armm.modalities`.

    Raises InputError: an installed package's modality cannot be imported.
    """
    found: dict[str, type[Modality]] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        package = entry.dist.name if entry.dist else "an unknown package"
        try:
            found[entry.name] = entry.load()
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"the modality {entry.name!r} of {package} cannot be imported: {error}; repair or uninstall {package}"
            ) from error
    return found
