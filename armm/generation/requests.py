"""What is asked for: prompts as streams, plans, parts that are given, all checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from armm.errors import InputError, nearest
from armm.grammar import END, Grammar, Stage
from armm.model import AutoregressiveModel
from armm.sequence import Document


@dataclass(frozen=True)
class Start:
    """Where samples of one prompt begin.

    Attributes:
        read: symbols of the stream that are read before anything is drawn.
        given: symbols further on that are kept, by their place in the stream; between them are holes to fill.
        without: what the twin reads that guidance steers away from.
        n_holes: how many symbols between are to be filled.
    """

    read: list[int]
    given: Mapping[int, int] = field(default_factory=dict)
    without: list[int] | None = None
    n_holes: int = 0


def start(model: AutoregressiveModel, prompt: Document, complete: bool = False, n_unknown: int = 0) -> Start:
    """The start of samples that continue a prompt, or fill its holes: payload symbols that are V, "unknown".

    Args:
        complete: the last segment ends where it ends.
        n_unknown: so many segments at the beginning may be unknown and are read so; they have no holes.

    Raises InputError: it names other modalities than the model's, or leaves no room in the context.
    """
    grammar = model.grammar
    if not prompt:
        return Start([])
    names = [segment.modality for segment in prompt]
    expected = grammar.layout[: len(names)] if grammar.layout else names
    if names != expected or any(name not in grammar.modalities for name in names):
        known = ", ".join(grammar.layout or grammar.names)
        raise InputError(f"the prompt is {', '.join(names)}, the model's documents are {known}; begin with these")
    last, modality = prompt[-1], grammar.modalities[prompt[-1].modality]
    if not complete and modality.ended and modality.max_units is not None and last.n_units >= modality.max_units:
        raise InputError(
            f"the prompt has {last.n_units} units of {names[-1]!r} and no more fit; shorten it, or call it complete"
        )
    stream = grammar.flatten(prompt, open_end=not complete)
    stream = stream[:-1] if complete and grammar.layout is None else stream  # without the symbol that ends a document
    n_units, context = grammar.n_units(prompt) - (grammar.layout is None), grammar.context  # the end is not there yet
    holes = find_holes(grammar, stream, n_unknown) if context is None or n_units <= context else []
    if context is not None and n_units >= context and not holes:
        raise InputError(f"the prompt has {n_units} units, the model's context is {context}; shorten the prompt")
    if not holes:
        return Start(stream)
    unknown = set(holes)
    given = {place: symbol for place, symbol in enumerate(stream) if place > holes[0] and place not in unknown}
    return Start(stream[: holes[0]], given, n_holes=len(holes))


def untold(model: AutoregressiveModel, prompt: Document, complete: bool = False) -> Start:
    """The start of a prompt's unconditional twin: the segments before the one that goes on are not told."""
    cursor = model.grammar.start()
    for symbol in start(model, prompt, complete).read:
        model.grammar.push(cursor, symbol)
    given = len(cursor.closed)
    twin = model.grammar.without_conditions(prompt, given)
    return start(model, twin, complete, given if model.grammar.layout else 0)


def find_holes(grammar: Grammar, stream: Sequence[int], n_unknown: int = 0) -> list[int]:
    """The places of a stream whose payload symbol is V, behind the first segments."""
    cursor, holes = grammar.start(), []
    for place, symbol in enumerate(stream):
        slot = cursor.slot()
        hole = slot.stage == Stage.PAYLOAD and symbol == grammar.vocab(slot)
        if hole and len(cursor.closed) >= n_unknown:
            holes.append(place)
        grammar.push(cursor, symbol)
    return holes


def forced_controls(
    model: AutoregressiveModel, plan: Sequence[str] | None, prompts: Sequence[Document]
) -> list[int] | None:
    """The control symbols that a plan forces, the end included.

    Raises InputError: it names something unknown, or does not begin with what the prompts are.
    """
    if plan is None:
        return None
    grammar = model.grammar
    if grammar.layout is not None:
        raise InputError(f"this model's documents are always {', '.join(grammar.layout)}; leave the plan out")
    for name in plan:
        if name not in grammar.modalities:
            known = ", ".join(grammar.names)
            raise InputError(f"the plan names {name!r}; the modalities are {known}{nearest(name, grammar.names)}")
    for prompt in prompts:
        names = [segment.modality for segment in prompt]
        if names != list(plan[: len(names)]):
            raise InputError(
                f"the prompt is {', '.join(names)}, the plan {', '.join(plan)}; let it begin with the prompt"
            )
    return [1 + grammar.names.index(name) for name in plan] + [END]


def ends_by_itself(model: AutoregressiveModel) -> bool:
    """Whether every document of a model comes to an end of its own, before any limit of the context."""
    grammar = model.grammar
    modalities = [grammar.modalities[name] for name in grammar.layout or grammar.names]
    return all(m.ended or m.n_units(m.header((0,) * len(m.header_sizes))) is not None for m in modalities)
