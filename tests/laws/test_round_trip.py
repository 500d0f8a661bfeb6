"""Law 1: what was encoded decodes to the same; and the check of it catches modalities that lose something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armm.errors import InputError
from armm.modalities import Audio, Image, Label, Text
from armm.modalities.audio import mu_law_error
from armm.modality import Modality
from armm.sequence import Segment
from armm.testing import LawBroken, check_round_trip
from armm.testing.models import Letters
from armm.testing.round_trip import check_kept, check_random_round_trip

WORDS = ["a rose is a rose", "naïve\r\n\tΩ 🌹", " spaces  and\n\nlines\n"]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_text_bytes_keep_any_text(text: str) -> None:
    """Any string of Unicode characters, alone and in units of several bytes."""
    check_round_trip(Text("bytes"), [text])
    check_round_trip(Text("bytes", unit_symbols=4, ended=True), [text])


@given(st.binary(min_size=1, max_size=20))
def test_text_bytes_keep_any_bytes(content: bytes) -> None:
    """Bytes that are no UTF-8 stand in a string as surrogate escapes."""
    check_round_trip(Text("bytes"), [content.decode("utf-8", "surrogateescape")])


@pytest.mark.parametrize("unit_symbols", [1, 3])
@pytest.mark.parametrize("kind", ["chars", "bpe"])
def test_fitted_text_keeps_text_of_its_alphabet(kind: Any, unit_symbols: int) -> None:
    modality = Text(kind, vocab_size=300, unit_symbols=unit_symbols, ended=True).fit(WORDS)
    check_round_trip(modality, [*WORDS, WORDS[0][::-1]])
    check_random_round_trip(modality)


IMAGES = {
    "grey rows": Image(size=(3, 4)),
    "RGB rows": Image(size=(2, 3), channels=3),
    "patches": Image(size=(4, 6), levels=5, block=(2, 2)),
    "RGB patches": Image(size=(4, 4), channels=3, levels=9, block=(2, 2)),
    "strips": Image(size=(3, 6), levels=2, block=(1, 2)),
    "any size": Image(max_size=(4, 6), levels=3, block=(2, 2)),
    "RGB rows, pixels in fours": Image(size=(4, 6), channels=3, levels=9, place=(2, 2)),
    "any size, pixels in pairs": Image(max_size=(4, 8), levels=3, block=(2, 4), place=(1, 2)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_keep_every_level(name: str) -> None:
    image = IMAGES[name]
    largest = image.size or image.max_size
    assert largest is not None
    height, width = largest
    shape = (height, width) if image.channels == 1 else (height, width, image.channels)
    levels = np.random.default_rng(0).integers(0, image.levels, (4, *shape)).astype(np.uint8)
    check_round_trip(image, [*levels, np.full(shape, image.levels - 1, dtype=np.uint8)])
    check_random_round_trip(image)


@pytest.mark.parametrize("levels", [2, 7, 256])
def test_audio_is_off_by_its_stated_error_at_most(levels: int) -> None:
    audio = Audio(frame=4, levels=levels)
    waveforms = [np.random.default_rng(n).uniform(-1, 1, n).astype(np.float32) for n in (1, 4, 23)]
    ends = [np.array([-1, 0, 1, 1e-9, -0.5], dtype=np.float32)]
    check_round_trip(audio, waveforms + ends, lambda raw: 1.001 * mu_law_error(raw, levels))
    check_random_round_trip(audio)


def test_audio_scaled_to_its_peak_stays_as_it_is_from_then_on() -> None:
    """`normalise: peak` changes a clip once; random segments must not be held against it."""
    check_random_round_trip(Audio(frame=4, normalise="peak"))


@pytest.mark.parametrize("label", [Label(n_classes=3), Label(names=("cat", "dog", "fox"))], ids=["numbers", "names"])
def test_labels_keep_every_class(label: Label) -> None:
    check_round_trip(label, label.names or range(3))
    check_random_round_trip(label)


# ------------------------------------------------------------- planted faults


@dataclass(frozen=True)
class Broken(Letters):
    """Letters whose coding can be spoilt."""

    spoil_encode: Callable[[Segment], Segment] = lambda segment: segment
    spoil_decode: Callable[[str], str] = lambda text: text

    max_units = None

    def encode(self, raw: str) -> Segment:
        return self.spoil_encode(super().encode(raw))

    def decode(self, segment: Segment) -> str:
        return self.spoil_decode(super().decode(segment))


def shortened(segment: Segment) -> Segment:
    return Segment(segment.modality, segment.symbols[:-1])


FAULTS: dict[str, Modality] = {
    "decode loses the last symbol": Broken(spoil_decode=lambda text: text[:-1]),
    "decode reverses": Broken(spoil_decode=lambda text: text[::-1]),
    "decode takes b for c": Broken(spoil_decode=lambda text: text.replace("b", "c")),
    "decode forgets everything": Broken(spoil_decode=lambda text: "a"),
    "encode loses the last symbol": Broken(spoil_encode=shortened),
    "encode takes b for c": Broken(
        spoil_encode=lambda s: replace(s, symbols=torch.where(s.symbols == 1, 2, s.symbols))
    ),
    "encode forgets everything": Broken(spoil_encode=lambda s: replace(s, symbols=torch.zeros_like(s.symbols))),
    "encode leaves the alphabet": Broken(spoil_encode=lambda s: replace(s, symbols=s.symbols + 1)),
    "encode uses another name": Broken(spoil_encode=lambda s: replace(s, modality="text")),
    "encode invents a header": Broken(spoil_encode=lambda s: replace(s, header=(2,))),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_coding_is_caught(name: str) -> None:
    """On given data and on random segments alike."""
    with pytest.raises(LawBroken, match=r"^round trip: "):
        check_round_trip(FAULTS[name], ["abcacb", "b", "ccca"])
    with pytest.raises(LawBroken, match=r"^round trip: "):
        check_random_round_trip(FAULTS[name])


def test_error_beyond_the_tolerance_is_caught() -> None:
    raw = [np.linspace(-1, 1, 9, dtype=np.float32)]
    check_round_trip(Audio(frame=4, levels=16), raw, 0.2)
    with pytest.raises(LawBroken, match=r"^round trip: "):
        check_round_trip(Audio(frame=4, levels=16), raw, 0.01)


def test_decode_that_fails_on_a_cut_segment_is_caught() -> None:
    """Samples are cut short by `max_symbols`; they have to be shown too."""

    @dataclass(frozen=True)
    class Pairs(Broken):
        def decode(self, segment: Segment) -> str:
            assert segment.length, "nothing"
            return super().decode(segment)

    with pytest.raises(LawBroken, match="raises AssertionError: nothing"):
        check_random_round_trip(Pairs())


@dataclass(frozen=True)
class Forgetful(Letters):
    """Learns letters and does not keep them."""

    learned: str | None = field(default=None, repr=False)


class NoDataclass(Modality):
    name, vocab = "letters", 3
    encode, decode = Letters.encode, Letters.decode  # type: ignore[assignment]


def test_what_a_bundle_would_lose_is_caught() -> None:
    """A modality comes back from its fields and its files as it was."""
    check_kept(Text("chars").fit(WORDS))
    check_kept(Image(size=(2, 2), levels=3))
    with pytest.raises(LawBroken, match=r"^round trip: from its fields and files\(\)"):
        check_kept(Forgetful(learned="abc"))
    with pytest.raises(LawBroken, match="NoDataclass is not a frozen dataclass"):
        check_kept(NoDataclass())


def test_modality_that_refuses_random_data_asks_for_real_data() -> None:
    def refuse(segment: Segment) -> Segment:
        raise InputError("not a word of mine")

    with pytest.raises(InputError, match="check_round_trip"):
        check_random_round_trip(Broken(spoil_encode=refuse))
