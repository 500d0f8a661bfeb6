"""What the samples of one `armm generate` have in common, as plain data: as options say it and files keep it.

Here stands what a sample depends on, and nothing else: how many there are, how many side by side, and who guesses
ahead change the speed only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from armm.commands.prompting import Given, about_file, text_name
from armm.errors import InputError, nearest
from armm.generation import (
    Allowed,
    Banned,
    Filter,
    FrequencyPenalty,
    LogitBias,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    Typical,
)
from armm.generation.constraints import JsonSchema, Lark, Regex
from armm.model import AutoregressiveModel


@dataclass(frozen=True)
class Request:
    """How samples are drawn, under the names of the options of `armm generate`.

    Attributes:
        temperature_of: of the symbols of single modalities, such as `audio=0.9`.
        ban, allow: lists of symbols, such as `10,13` or `text=0-31`.
        bias: lists of symbols and nats, such as `10:-2.5` or `text=10:1,13:1`.
        json_schema, lark: the schema or the grammar itself.
        without: what guidance steers away from.
        max_symbols: None where documents end by themselves.
        exact: whether samples shall be the same in any batch.
        beam: the width of a search for the most probable documents, which then are what is made, the best first.
        length_penalty: of that search.
        best_of: how many samples of a prompt are drawn, of which the most probable are what is made.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    temperature_of: tuple[str, ...] = ()
    ban: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    regex: str | None = None
    json_schema: str | None = None
    guidance: float | None = None
    without: tuple[Given, ...] = ()
    prompt_complete: bool = False
    plan: tuple[str, ...] | None = None
    max_symbols: int | None = None
    weights: str = "float"
    exact: bool = True
    beam: int | None = None
    length_penalty: float = 0.0
    allow: tuple[str, ...] = ()
    bias: tuple[str, ...] = ()
    lark: str | None = None
    best_of: int | None = None

    def filters(self, model: AutoregressiveModel) -> list[Filter]:
        """What the options ask of the logits.

        Raises InputError: a value that its filter refuses, or a grammar that nothing meets.
        """
        built: list[Filter] = []
        if self.temperature != 1:
            with about_file("--temperature"):
                built.append(Temperature(self.temperature))
        built.extend(_temperature_of(model, argument) for argument in self.temperature_of)
        if self.top_k is not None:
            with about_file("--top-k"):
                built.append(TopK(self.top_k))
        for option, value, kind in (
            ("--top-p", self.top_p, TopP),
            ("--min-p", self.min_p, MinP),
            ("--typical", self.typical, Typical),
            ("--repetition-penalty", self.repetition_penalty, RepetitionPenalty),
            ("--presence-penalty", self.presence_penalty, PresencePenalty),
            ("--frequency-penalty", self.frequency_penalty, FrequencyPenalty),
        ):
            if value is not None:
                with about_file(option):
                    built.append(kind(value))
        for option, lists, kind in (("--ban", self.ban, Banned), ("--allow", self.allow, Allowed)):
            for listed in lists:
                symbols, name = _listed(model, option, listed)
                with about_file(option):
                    built.append(kind(symbols, name))
        return [*built, *(_bias(model, listed) for listed in self.bias), *self._grammars(model)]

    def _grammars(self, model: AutoregressiveModel) -> Iterable[Filter]:
        for option, grammar, kind in (
            ("--regex", self.regex, Regex),
            ("--json-schema", self.json_schema, JsonSchema),
            ("--lark", self.lark, Lark),
        ):
            if grammar is not None:
                text = model.modalities[text_name(model, option)]
                with about_file(option):
                    yield kind(grammar, text)


def _temperature_of(model: AutoregressiveModel, argument: str) -> Filter:
    """`NAME=T`."""
    name, _, value = argument.partition("=")
    _check_modality(model, f"--temperature-of {argument}", name)
    try:
        t = float(value)
    except ValueError:
        raise InputError(f"--temperature-of {argument}: {value!r} is no number; write it as {name}=0.9") from None
    with about_file("--temperature-of"):
        return Temperature(t, name)


def _check_modality(model: AutoregressiveModel, option: str, name: str) -> None:
    if name not in model.modalities:
        known = list(model.modalities)
        raise InputError(f"{option}: the model has {', '.join(known)}, no {name!r}{nearest(name, known)}")


def _named(model: AutoregressiveModel, option: str, argument: str) -> tuple[str, list[str], int]:
    """`[NAME=]A,B,C`: the modality, if one is named, what is listed, and how many symbols there are."""
    name, separator, listed = argument.partition("=")
    name, listed = (name, listed) if separator else ("", argument)
    if name:
        _check_modality(model, f"{option} {argument}", name)
    vocab = max(modality.vocab for key, modality in model.modalities.items() if name in ("", key))
    return name, listed.split(","), vocab


def _listed(model: AutoregressiveModel, option: str, argument: str) -> tuple[list[int], str]:
    """`[NAME=]10,13,0-31`."""
    name, parts, vocab = _named(model, option, argument)
    symbols: set[int] = set()
    for part in parts:
        bounds = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        first, last = (int(bounds[1]), int(bounds[2] or bounds[1])) if bounds else (1, 0)
        if first > last:
            raise InputError(f"{option} {argument[:60]}: {part!r} is no symbol; write them as 10,13 or as ranges, 0-31")
        if last >= vocab:
            raise InputError(f"{option} {argument[:60]}: there is no symbol {last}, they are 0 to {vocab - 1}")
        symbols.update(range(first, last + 1))
    return sorted(symbols), name


def _bias(model: AutoregressiveModel, argument: str) -> Filter:
    """`[NAME=]10:-2.5,13:1`."""
    name, parts, vocab = _named(model, "--bias", argument)
    pairs: list[tuple[int, float]] = []
    for part in parts:
        found = re.fullmatch(r"\s*(\d{1,9}):([-+]?[\d.]+(?:e[-+]?\d+)?)\s*", part)
        try:
            symbol, nats = (int(found[1]), float(found[2])) if found else (-1, 0.0)
        except ValueError:
            symbol, nats = -1, 0.0
        if symbol < 0:
            raise InputError(f"--bias {argument[:60]}: {part!r} is no symbol with its nats; write them as 10:-2.5,13:1")
        if symbol >= vocab:
            raise InputError(f"--bias {argument[:60]}: there is no symbol {symbol}, they are 0 to {vocab - 1}")
        pairs.append((symbol, nats))
    with about_file("--bias"):
        return LogitBias(pairs, name)
