"""Asking a model: what it makes of one segment after others that are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from armm.datasets.source import Item
from armm.errors import InputError, nearest
from armm.generation import Filter, Sample, generate
from armm.model import AutoregressiveModel
from armm.sequence import Document


def check_names(model: AutoregressiveModel, names: Sequence[str]) -> None:
    """Raises InputError: the model has no such modalities, or its documents are not of them in this order."""
    known, layout = list(model.modalities), model.grammar.layout
    for name in names:
        if name not in known:
            raise InputError(
                f"scores: there is no modality {name!r}; they are {', '.join(known)}{nearest(name, known)}"
            )
    if layout is not None and list(names) != layout:
        raise InputError(f"scores: documents are {', '.join(layout)}, the score is about {', '.join(names)}")


def ask(
    model: AutoregressiveModel,
    items: Sequence[Item],
    given: Sequence[str],
    target: str,
    seed: int = 0,
    filters: Sequence[Filter] = (),
    guidance: float | None = None,
    batch_size: int = 32,
) -> Iterator[Sample]:
    """One sample for each item: its segments `given`, then a `target`. `Sample.prompt` is the item's number.

    Raises InputError: an item lacks something, or does not fit the model.
    """
    prompts = [[model.modalities[name].encode(take(item, name)) for name in given] for item in items]
    plan = [*given, target] if model.grammar.layout is None else None
    return generate(
        model,
        prompts,
        samples=[(number, number) for number in range(len(prompts))],
        seed=seed,
        filters=filters,
        guidance=guidance,
        plan=plan,
        prompt_complete=True,
        exact=False,
        batch_size=batch_size,
    )


def document(model: AutoregressiveModel, item: Item, given: Sequence[str], target: str) -> Document:
    """An item's segments, only the target scored."""
    segments = [model.modalities[name].encode(take(item, name)) for name in (*given, target)]
    return [*(segment.as_condition() for segment in segments[:-1]), segments[-1]]


def take(item: Item, name: str) -> object:
    """Raises InputError: the item has nothing of that name."""
    if name not in item:
        raise InputError(f"scores: the data has no {name!r}, it has {', '.join(item)}")
    return item[name]
