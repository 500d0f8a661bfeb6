"""Units that a state's rows have completed, as the backbone reads them.

Axes: R rows of one call, N units of each, M units in all, K symbols of a unit, F header fields, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from armm.grammar import Grammar, Slot, Stage

if TYPE_CHECKING:
    from armm.model import AutoregressiveModel


class NewUnit(NamedTuple):
    """A unit that an extension completed; the vector that every document begins with has no slot."""

    slot: Slot | None
    symbols: list[int]
    index: int
    header: tuple[int, ...]


BEGIN = NewUnit(None, [], 0, ())


def embed_units(
    model: AutoregressiveModel, rows: Sequence[Sequence[NewUnit]], min_rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Completed units of rows -> (R, N, D), right-padded, and (R, N, value_width) where the backbone wants values.

    min_rows: products have at least so many rows.
    """
    config, device, n = model.backbone_config, model.begin.device, max(map(len, rows))
    groups: dict[Slot | None, list[tuple[int, NewUnit]]] = {}
    for i, units in enumerate(rows):
        for j, unit in enumerate(units):
            groups.setdefault(unit.slot, []).append((i * n + j, unit))
    alike = next(iter(groups)) if len(groups) == 1 and min(map(len, rows)) == n else None
    if alike is not None:  # they stand as they are embedded
        x, values = _embed(model, alike, [unit for _, unit in groups.pop(alike)], min_rows)
        x = x.to(dtype)
        values = None if values is None else values.to(dtype)
    else:
        x = torch.zeros(len(rows) * n, config.width, device=device, dtype=dtype)
        values = None
    if values is None and config.value_width:
        values = x.new_zeros(len(rows) * n, config.value_width)
    for slot, members in groups.items():
        where = torch.tensor([place for place, _ in members], device=device)
        if slot is None:
            x[where] = model.begin
            continue
        vectors, own_values = _embed(model, slot, [unit for _, unit in members], min_rows)
        x[where] = vectors.to(dtype)
        if values is not None and own_values is not None:
            values[where] = own_values.to(dtype)
    return x.view(len(rows), n, -1), None if values is None else values.view(len(rows), n, -1)


def _embed(model: AutoregressiveModel, slot: Slot, units: list[NewUnit], min_rows: int) -> tuple[Tensor, Tensor | None]:
    """(M, D), and (M, value_width) or None."""
    x, values = model.embed(slot, *_stack(model.grammar, slot, units, min_rows, model.begin.device))
    return x[: len(units)], None if values is None else values[: len(units)]


def _stack(
    grammar: Grammar, slot: Slot, units: list[NewUnit], min_rows: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Symbols (M, K), indices (M,) and headers (M, F) of units of one kind; the last one is repeated up to min_rows."""
    units = units + units[-1:] * (min_rows - len(units))
    symbols = [unit.symbols for unit in units]
    if slot.stage == Stage.PAYLOAD:
        modality = grammar.modalities[slot.modality]
        symbols = [own + [modality.vocab] * (modality.unit_symbols - len(own)) for own in symbols]
    return (
        torch.tensor(symbols, device=device),
        torch.tensor([unit.index for unit in units], device=device),
        torch.tensor([unit.header for unit in units], dtype=torch.int64, device=device),
    )
