"""Law 1: what was encoded decodes to the same, or to as much as the modality promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armm.errors import InputError
from armm.grammar import Grammar
from armm.modality import Modality
from armm.sequence import Segment
from armm.spec import from_spec, to_spec
from armm.testing.law import LawBroken
from armm.testing.streams import pick, random_stream

LAW = "round trip"
Tolerance = float | Callable[[Any], Any] | None


def check_round_trip(modality: Modality, raws: Iterable[Any], tolerance: Tolerance = None) -> None:
    """Law 1, on real data: `decode(encode(raw))` is `raw`, directly and by way of the stream that models write.

    Args:
        raws: what to encode.
        tolerance: None for exactly the same; for lossy modalities the largest error, or a function from the raw data to
            the largest error of each of its values.

    Raises LawBroken: it is not, or a segment contradicts what the modality says of itself.
    """
    grammar = grammar_of(modality)
    for number, raw in enumerate(raws):
        segment = modality.encode(raw)
        check_segment(modality, segment)
        ways = {"": segment, " by way of a stream": grammar.parse(grammar.flatten([segment]))[0]}
        for way, own in ways.items():
            back = modality.decode(own)
            if not same(back, raw, tolerance):
                raise LawBroken(LAW, f"decode(encode(raw)){way} of raw {number}, {_short(raw)}, is {_short(back)}")


def check_segment(modality: Modality, segment: Segment) -> None:
    """A segment is one of its modality: name, alphabet, unit, header and length.

    Raises LawBroken: it is not.
    """
    if segment.modality != modality.name:
        raise LawBroken(LAW, f"encode names its segment {segment.modality!r}, not self.name, {modality.name!r}")
    coded, sizes = modality.coded_header(segment.header), modality.header_sizes
    if len(coded) != len(sizes) or not all(0 <= value < size for value, size in zip(coded, sizes, strict=True)):
        raise LawBroken(LAW, f"coded_header{segment.header} is {coded}, but header_sizes are {sizes}")
    if modality.header(coded) != segment.header:
        raise LawBroken(LAW, f"header{coded} is {modality.header(coded)}, the segment's is {segment.header}")
    if not modality.ended and modality.n_units(segment.header) is None:
        segment = segment.window(0, segment.length // modality.unit_symbols)  # models see whole units of it only
    try:
        grammar_of(modality).check([segment])
    except InputError as error:
        raise LawBroken(LAW, str(error)) from error


def check_kept(modality: Modality) -> None:
    """A bundle keeps a modality as its fields and its files, and that gives the same modality again.

    Raises LawBroken: it does not.
    """
    kind = type(modality)
    if not (is_dataclass(modality) and kind.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise LawBroken(LAW, f"{kind.__name__} is not a frozen dataclass, so a recipe cannot describe it")
    if "<locals>" in kind.__qualname__:  # has no class path: a class of a test, or of an interactive session
        return
    again = from_spec(to_spec(modality), Modality).with_files(modality.files())
    if again != modality:
        raise LawBroken(LAW, f"from its fields and files(), {_short(modality)} comes back as {_short(again)}")


def check_random_round_trip(modality: Modality, seed: int = 0, n_segments: int = 8) -> None:
    """Law 1 without data: on what random segments of the alphabet decode to.

    Encoding and decoding that again gives the same; or, where encoding also normalises, the same from then on. Every
    symbol that `encode` writes counts: changing one changes what is decoded. A segment cut anywhere can be decoded.

    Raises LawBroken: that is not so. InputError: `encode` accepts nothing that random segments decode to.
    """
    generator = torch.Generator().manual_seed(seed)
    grammar = grammar_of(modality)
    n_accepted = 0
    for attempt in range(16 * n_segments):
        stream = random_stream(grammar, generator, n_symbols=1 + attempt % 12)
        segment = replace(grammar.parse(stream)[0], modality=modality.name)
        raw = _decode(modality, segment)
        try:
            again = modality.encode(raw)
        except InputError:
            continue
        check_segment(modality, again)
        once = _decode(modality, again)
        if not same(once, raw) and not same(_decode(modality, modality.encode(once)), once):
            raise LawBroken(
                LAW, f"decode(encode(raw)) of {_short(raw)} is {_short(once)}, and changes again with each turn"
            )
        _check_every_symbol_counts(modality, again, once, generator)
        for cut in {0, 1, len(stream) // 2, len(stream) - 1}:
            for part in grammar.parse(stream[:cut]):
                _decode(modality, part)
        n_accepted += 1
        if n_accepted == n_segments:
            return
    if not n_accepted:
        raise InputError(
            f"{modality.name}: encode refuses all that random segments decode to, so the round trip cannot be checked; "
            "check it with raw data of your own, armm.testing.check_round_trip(modality, raws)"
        )


def _check_every_symbol_counts(modality: Modality, segment: Segment, raw: Any, generator: torch.Generator) -> None:
    """Of a segment that `encode` returned and what it decodes to; others may end in what `decode` leaves out."""
    if modality.vocab < 2 or not segment.length:
        return
    for at in {0, segment.length - 1, *torch.randint(segment.length, (6,), generator=generator).tolist()}:
        old = int(segment.flat()[at])
        for symbol in {(old + 1) % modality.vocab, pick([s for s in range(modality.vocab) if s != old], generator)}:
            symbols = segment.symbols.clone()
            symbols.view(-1)[at] = symbol
            other = _decode(modality, replace(segment, symbols=symbols))
            if same(other, raw):
                raise LawBroken(LAW, f"decode gives {_short(raw)} whether symbol {at} is {old} or {symbol}")
            try:
                other = _decode(modality, modality.encode(other))
            except InputError:
                continue
            if same(other, raw):
                raise LawBroken(
                    LAW, f"decode(encode(raw)) gives {_short(raw)} whether symbol {at} was {old} or {symbol}"
                )


def _decode(modality: Modality, segment: Segment) -> Any:
    try:
        return modality.decode(segment)
    except Exception as error:
        full = f"{segment.length} symbols, header {segment.header}"
        raise LawBroken(LAW, f"decode of a segment of {full} raises {type(error).__name__}: {error}") from error


def grammar_of(modality: Modality) -> Grammar:
    """Of documents that are one segment of this modality."""
    return Grammar({modality.name: modality}, [modality.name])


def same(a: Any, b: Any, tolerance: Tolerance = None) -> bool:
    """Whether two pieces of raw data are equal, arrays and lists in all their values."""
    allowed = tolerance(b) if callable(tolerance) else tolerance
    if allowed is not None:
        x, y = _array(a), _array(b)
        return x.shape == y.shape and bool((np.abs(x.astype(np.float64) - y.astype(np.float64)) <= allowed).all())
    if isinstance(a, Tensor | np.ndarray) or isinstance(b, Tensor | np.ndarray):
        return np.array_equal(_array(a), _array(b))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _array(raw: Any) -> np.ndarray:
    return raw.detach().cpu().numpy() if isinstance(raw, Tensor) else np.asarray(raw)


def _short(raw: Sequence[Any] | Any) -> str:
    text = " ".join(repr(raw).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
