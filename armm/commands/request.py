"""What the samples of one `armm generate` have in common, as plain data: as options say it and files keep it.

Here stands what a sample depends on, and nothing else: how many there are, how many side by side, and who guesses
ahead change the speed only.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from armm import bundle
from armm.commands.prompting import Given, about_file, parse_given, text_name
from armm.errors import InputError, nearest
from armm.generation import (
    Allowed,
    Banned,
    Draft,
    Filter,
    FixedPoint,
    FrequencyPenalty,
    Hold,
    LogitBias,
    MinP,
    NGram,
    PresencePenalty,
    Proposer,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    Typical,
    UnitAbove,
)
from armm.generation.constraints import JsonSchema, Lark, Regex
from armm.generation.requests import ends_by_itself
from armm.model import AutoregressiveModel
from armm.prepacking import prepack

PROPOSERS: dict[str, type[Proposer]] = {
    "ngram": NGram,
    "fixed-point": FixedPoint,
    "unit-above": UnitAbove,
    "hold": Hold,
}


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
        for listed in self.ban:
            symbols, name = _listed(model, "--ban", listed)
            with about_file("--ban"):
                built.append(Banned(symbols, name))
        for listed in self.allow:
            symbols, name = _listed(model, "--allow", listed)
            with about_file("--allow"):
                built.append(Allowed(symbols, name))
        return [*built, *(_bias(model, listed) for listed in self.bias), *self._grammars(model)]

    def _grammars(self, model: AutoregressiveModel) -> Iterable[Filter]:
        if self.regex is not None:
            text = model.modalities[text_name(model, "--regex")]
            with about_file("--regex"):
                yield Regex(self.regex, text)
        if self.json_schema is not None:
            text = model.modalities[text_name(model, "--json-schema")]
            with about_file("--json-schema"):
                yield JsonSchema(self.json_schema, text)
        if self.lark is not None:
            text = model.modalities[text_name(model, "--lark")]
            with about_file("--lark"):
                yield Lark(self.lark, text)


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


# --------------------------------------------------------------------- options


def add_filter_options(p: argparse.ArgumentParser) -> None:
    """The options that say what is drawn."""
    g = p.add_argument_group("what is drawn")
    g.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy, 1 the model (default 1)")
    g.add_argument(
        "--temperature-of",
        action="append",
        default=[],
        metavar="NAME=T",
        help="of one modality's symbols, and not of where it ends: audio=0.9; repeatable",
    )
    g.add_argument("--top-k", type=int, metavar="K", help="keep the K most probable symbols")
    g.add_argument("--top-p", type=float, metavar="P", help="keep the fewest symbols of probability P in all")
    g.add_argument("--min-p", type=float, metavar="P", help="keep symbols at least P times as probable as the best")
    g.add_argument("--typical", type=float, metavar="P", help="keep the most typical symbols of probability P in all")
    g.add_argument("--repetition-penalty", type=float, metavar="X", help="divide the logits of symbols seen, as by 1.2")
    g.add_argument("--presence-penalty", type=float, metavar="NATS", help="off every symbol generated already")
    g.add_argument("--frequency-penalty", type=float, metavar="NATS", help="off a symbol for each time it was")
    g.add_argument(
        "--ban", action="append", default=[], metavar="SYMBOLS", help="never these: [NAME=]10,13,0-31; repeatable"
    )
    g.add_argument(
        "--allow", action="append", default=[], metavar="SYMBOLS", help="only these: [NAME=]65-90; repeatable"
    )
    g.add_argument(
        "--bias", action="append", default=[], metavar="NATS", help="more or less of some: [NAME=]10:-2.5,13:1"
    )
    g.add_argument("--regex", metavar="PATTERN", help="the generated text matches it as a whole")
    g.add_argument("--json-schema", metavar="JSON", help="the generated text is JSON of this schema, or this file's")
    g.add_argument("--lark", metavar="GRAMMAR", help="the generated text follows this grammar, or this file's")
    g.add_argument("--guidance", type=float, metavar="S", help="classifier-free guidance; 1 is none, 3 strong")
    g.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="[NAME=]VALUE",
        help="the prompt that guidance steers away from (default none); repeatable",
    )


def add_search_options(p: argparse.ArgumentParser) -> None:
    """The options of beam search and of the best of several samples."""
    g = p.add_argument_group("the most probable documents, instead of samples")
    g.add_argument("--best-of", type=int, metavar="N", help="draw N samples and keep the --n most probable by symbol")
    g.add_argument("--beam", type=int, metavar="WIDTH", help="beam search; --n of them at most")
    g.add_argument(
        "--length-penalty", type=float, default=0.0, metavar="A", help="0 ranks by probability, 1 by it per symbol"
    )


def check_search(options: argparse.Namespace) -> None:
    """Raises InputError: what a search does not do, or a length penalty without one."""
    if options.best_of is not None:
        if options.beam is not None or options.stream:
            other = "--stream" if options.stream else "--beam"
            raise InputError(f"--best-of keeps samples when all of them are there, {other} does not; leave out one")
        if not options.n <= options.best_of:
            raise InputError(f"--best-of {options.best_of} are fewer than the --n {options.n} to keep; raise it")
    if options.beam is None:
        if options.length_penalty:
            raise InputError("--length-penalty ranks the documents of a beam search; add --beam, or leave it out")
        return
    for option in ("temperature_of", "stop", "guidance", "without", "plan", "then", "proposer", "mask"):
        if getattr(options, option):
            name = f"--{option.replace('_', '-')}"
            raise InputError(f"--beam searches for what is most probable, without {name}; leave out one of them")
    if options.temperature != 1:
        raise InputError("--beam ranks by probability, which --temperature does not change; leave it out")
    if not options.n <= options.beam:
        raise InputError(f"--beam {options.beam} finds at most so many documents, --n asks for {options.n}; raise it")


def parse_request(model: AutoregressiveModel, options: argparse.Namespace, default_length: int) -> Request:
    """What the options of `armm generate` ask for; so many symbols where documents have no end of their own."""
    check_search(options)
    plan, complete = planned(model, options)
    limit = options.max_symbols
    if limit is None and not ends_by_itself(model):
        limit = default_length
    return Request(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        typical=options.typical,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        temperature_of=tuple(options.temperature_of),
        ban=tuple(options.ban),
        stop=tuple(options.stop),
        regex=options.regex,
        json_schema=None if options.json_schema is None else read_schema(options.json_schema),
        lark=None if options.lark is None else read_grammar(options.lark),
        guidance=options.guidance,
        without=parse_given(model, options.without, "--without"),
        prompt_complete=complete,
        plan=plan,
        max_symbols=limit,
        weights=options.weights,
        exact=not options.approximate,
        beam=options.beam,
        length_penalty=options.length_penalty,
        allow=tuple(options.allow),
        bias=tuple(options.bias),
        best_of=options.best_of,
    )


def planned(model: AutoregressiveModel, options: argparse.Namespace) -> tuple[tuple[str, ...] | None, bool]:
    """The modalities that documents shall have, where that is asked for, and whether the prompt's last one is whole.

    Raises InputError: --then with --plan, of an unknown modality, or against the model's layout.
    """
    if options.then is None:
        return None if options.plan is None else tuple(options.plan.split(",")), options.prompt_complete
    if options.plan is not None:
        raise InputError("--then says what follows the prompt, --plan what the whole document is; give one of them")
    begun = [given.name for given in parse_given(model, options.prompt, "--prompt")]
    begun += [text_name(model, "--prompts")] if options.prompts is not None else []
    then, known, layout = options.then.split(","), list(model.modalities), model.grammar.layout
    for name in then:
        if name not in known:
            raise InputError(f"--then names {name!r}; the modalities are {', '.join(known)}{nearest(name, known)}")
    if layout is None:
        return (*begun, *then), bool(begun)
    if [*begun, *then] != layout:
        raise InputError(
            f"--then {options.then}: after {', '.join(begun) or 'no prompt'} that makes {', '.join([*begun, *then])}, "
            f"this model's documents are {', '.join(layout)}"
        )
    return None, bool(begun)


def read_schema(argument: str) -> str:
    """A JSON schema that was typed, or the content of the file that was named.

    Raises InputError: there is no such file.
    """
    if argument.lstrip().startswith("{"):
        return argument
    try:
        return Path(argument).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a NUL in the name
        raise InputError(
            f"--json-schema {argument[:60]} is neither JSON nor a file that can be read; write "
            '\'{"type": "object"}\' or name a file'
        ) from error


def read_grammar(argument: str) -> str:
    """A grammar that was typed, which has a rule, or the content of the file that was named.

    Raises InputError: there is no such file.
    """
    if ":" in argument and not Path(argument).is_file():
        return argument
    try:
        return Path(argument).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f'--lark {argument[:60]} is neither a grammar nor a file that can be read; write \'start: "yes" | "no"\' '
            "or name a file"
        ) from error


def parse_proposer(model: AutoregressiveModel, argument: str | None, device: str) -> Proposer | None:
    """Who guesses ahead.

    Raises InputError: an unknown name, or a draft model that cannot be loaded or does not fit.
    """
    if argument is None:
        return None
    if argument.startswith("draft:"):
        with about_file(f"--proposer {argument}"):
            draft = Draft(prepack(bundle.load(argument.removeprefix("draft:"), device)))
            draft.check(model)
        return draft
    if argument not in PROPOSERS:
        known = [*PROPOSERS, "draft:RUN"]
        raise InputError(f"--proposer is {argument!r}, expected {', '.join(known)}{nearest(argument, known)}")
    return PROPOSERS[argument]()
