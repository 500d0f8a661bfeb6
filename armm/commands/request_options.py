"""The options of `armm generate` that say what is drawn, and what they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from armm import bundle
from armm.commands.prompting import about_file, parse_given, text_name
from armm.commands.request import Request
from armm.errors import InputError, nearest
from armm.generation import Draft, FixedPoint, Hold, NGram, Proposer, UnitAbove
from armm.generation.requests import ends_by_itself
from armm.model import AutoregressiveModel
from armm.prepacking import prepack

PROPOSERS: dict[str, type[Proposer]] = {
    "ngram": NGram,
    "fixed-point": FixedPoint,
    "unit-above": UnitAbove,
    "hold": Hold,
}


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


def check_best_of(options: argparse.Namespace) -> None:
    """Raises InputError: the best of several with what does not wait for all of them, or of fewer than are kept."""
    if options.best_of is None:
        return
    if options.beam is not None or options.stream:
        other = "--stream" if options.stream else "--beam"
        raise InputError(f"--best-of keeps samples when all of them are there, {other} does not; leave out one")
    if options.best_of < options.n:
        raise InputError(f"--best-of {options.best_of} are fewer than the --n {options.n} to keep; raise it")


def check_beam(options: argparse.Namespace) -> None:
    """Raises InputError: what a beam search does not do, or a length penalty without one."""
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
    if options.beam < options.n:
        raise InputError(f"--beam {options.beam} finds at most so many documents, --n asks for {options.n}; raise it")


def parse_request(model: AutoregressiveModel, options: argparse.Namespace, default_length: int) -> Request:
    """What the options of `armm generate` ask for; so many symbols where documents have no end of their own."""
    check_best_of(options)
    check_beam(options)
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
    return _content(argument, "--json-schema", 'JSON nor a file that can be read; write \'{"type": "object"}\'')


def read_grammar(argument: str) -> str:
    """A grammar that was typed, which has a rule, or the content of the file that was named.

    Raises InputError: there is no such file.
    """
    if ":" in argument and not Path(argument).is_file():
        return argument
    return _content(argument, "--lark", 'a grammar nor a file that can be read; write \'start: "yes" | "no"\'')


def _content(argument: str, option: str, otherwise: str) -> str:
    try:
        return Path(argument).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a NUL in the name
        raise InputError(f"{option} {argument[:60]} is neither {otherwise} or name a file") from error


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
