"""Turns: let a model speak, answer the calls it makes, and let it go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from armm.errors import InputError
from armm.generation.filter import Filter
from armm.generation.sampling import generate
from armm.model import AutoregressiveModel
from armm.sequence import Document

Answer = Callable[[str], str | None]
"""What a call of a tool results in; None where a text is no call."""


def converse(
    model: AutoregressiveModel,
    document: Document,
    answer: Answer,
    *,
    speaker: str = "assistant",
    tool: str = "tool",
    filters: Sequence[Filter] = (),
    first_filters: Sequence[Filter] | None = None,
    seed: int = 0,
    max_symbols: int = 200,
    most: int = 4,
) -> tuple[Document, list[str]]:
    """Let the speaker speak after a document; while what it says is a call, add the tool's answer and let it go on.

    Args:
        document: the turns so far.
        answer: computes a call.
        filters: of what is drawn. first_filters: of the first turn instead, such as a grammar of calls.
        max_symbols: of a turn. most: turns of the speaker; after so many a call is left unanswered.

    Returns: the document with all new turns, and what the speaker said in each of its own.

    Raises InputError: a model without such modalities, or whose documents have a fixed layout; most < 1.
    """
    names = model.grammar.names
    for name in (speaker, tool):
        if name not in names:
            raise InputError(f"turns need a modality {name!r}; the model has {', '.join(names)}")
    if model.grammar.layout is not None:
        raise InputError("turns need a model of free documents; leave model.layout out of its recipe")
    if most < 1:
        raise InputError(f"most is {most}, let the speaker speak at least once")
    said: list[str] = []
    for turn in range(most):
        own = filters if turn or first_filters is None else first_filters
        plan = [*(segment.modality for segment in document), speaker]
        [sample] = generate(
            model,
            [document],
            seed=seed,
            filters=own,
            plan=plan,
            prompt_complete=True,
            max_symbols=max_symbols,
        )
        document = sample.document[: len(plan)]
        said.append(str(sample.decoded[len(plan) - 1]) if len(sample.decoded) == len(plan) else "")
        result = answer(said[-1])
        if result is None or turn == most - 1:
            break
        document = [*document, model.modalities[tool].encode(result)]
    return document, said
