"""The self-test of exact mode: do the same rows give the same logits on this machine, however they are computed?

Alone or among others, beside a longer cache, step by step or several at once. It takes a few steps of the model itself,
so that it covers whatever products the model is made of.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from armm.grammar import Cursor, Stage
from armm.model import AutoregressiveModel
from armm.state import State

N_UNITS = 3  # written by every way of computing
N_PROMPTS = 5  # read side by side
# verdicts that were found already: of a model, on its device, in its precision, with so many threads
_FOUND: WeakKeyDictionary[AutoregressiveModel, dict[tuple[object, ...], bool]] = WeakKeyDictionary()


def is_exact(model: AutoregressiveModel, compiled: bool = False) -> bool:
    """Whether an exact state's logits are bitwise the same alone and in batches, here and now.

    compiled: of a state whose backbone takes its steps in compiled code.
    """
    parts = tuple(type(module) for module in model.backbone.modules())
    key = (model.begin.device, model.begin.dtype, torch.get_num_threads(), compiled, parts)
    known = _FOUND.setdefault(model, {})
    if key not in known:
        known[key] = self_test(model, compiled)
    return known[key]


@torch.inference_mode()
def self_test(model: AutoregressiveModel, compiled: bool = False) -> bool:
    """Compute a few units in several ways and compare their logits."""
    written, expected = _write(model, compiled)
    for n_rows, row in ((3, 1), (19, 17)):
        state = model.state(n_rows, True, compiled)
        longer = [written[: len(written) // 2] if other == 0 else [] for other in range(n_rows)]
        state.append(longer)  # another row is elsewhere
        for symbol, logits in zip(written, expected, strict=True):
            found = state.logits([0, row] if n_rows == 3 and not state.done[0] else range(row, n_rows))
            own = found[1] if n_rows == 3 and not state.done[0] else found[0]
            if not torch.equal(own[: len(logits)], logits):
                return False
            state.append([[] if other < row else [symbol] for other in range(n_rows)])
    return _agrees_read(model, compiled, written) and _agrees_ahead(model, compiled, written, expected)


def _agrees_read(model: AutoregressiveModel, compiled: bool, written: list[int]) -> bool:
    """Whether prompts that are read side by side are followed by what each is followed by alone."""
    prompts = [written[: len(written) * (1 + number) // N_PROMPTS] for number in range(N_PROMPTS)]
    together = model.state(N_PROMPTS, True, compiled)
    together.append(prompts)
    for found, prompt in zip(together.logits(range(N_PROMPTS)), prompts, strict=True):
        alone = model.state(1, True, compiled)
        alone.append([prompt])
        own = alone.logits([0])[0]
        if not torch.equal(found[: len(own)], own):
            return False
    return True


def _write(model: AutoregressiveModel, compiled: bool) -> tuple[list[int], list[Tensor]]:
    """A stream of some units, and the (V,) logits before each of its symbols, computed alone."""
    state = model.state(1, True, compiled)
    written: list[int] = []
    expected: list[Tensor] = []
    while not state.done[0] and state.cursors[0].position < N_UNITS + 2 and len(written) < 400:
        logits = state.logits([0])[0]
        expected.append(logits)
        written.append(_choice(state.cursors[0], logits, len(written)))
        state.append([written[-1:]])
    return written, expected


def _choice(cursor: Cursor, logits: Tensor, number: int) -> int:
    """Some possible symbol; one that goes on where a decision is asked for."""
    if cursor.stage == Stage.DECISION and logits[0] > float("-inf"):
        return 0
    possible = (logits > float("-inf")).nonzero()[:, 0]
    return int(possible[(7 * number + 3) % len(possible)])


def _agrees_ahead(model: AutoregressiveModel, compiled: bool, written: list[int], expected: list[Tensor]) -> bool:
    """Whether guesses are verified with the same numbers that stepping gives."""
    state = model.state(2, True, compiled)
    at = 0
    while at < len(written):
        cursor = state.cursors[0]
        channels = model.modalities[cursor.modality].symbol_channels if cursor.modality else 1
        n = min(cursor.unit_length, len(written) - at) // channels * channels
        if state.looks_ahead(0) and n and len(cursor.payload) % channels == 0:
            own = torch.tensor(written[at : at + n], device=state.device)
            found = state.ahead([0, 1], own.expand(2, -1))[1]
            if not all(torch.equal(a[: len(b)], b) for a, b in zip(found, expected[at : at + n], strict=True)):
                return False
            state.accept([0, 1], own.expand(2, -1))
            at += n
        elif state.verifies(0):
            return _agrees_verified(state, written[at:], expected[at:])
        else:
            state.append([written[at : at + 1]] * 2)
            at += 1
    return True


def _agrees_verified(state: State, symbols: list[int], expected: list[Tensor]) -> bool:
    """The same for symbols that are units of the backbone, as far as they are."""
    scout, n = state.cursors[0].copy(), 0
    while n < len(symbols) and scout.stage in (Stage.DECISION, Stage.PAYLOAD):
        state.grammar.push(scout, symbols[n])
        n += 1
    after = state.verify([symbols[:n], symbols[:n]])[1]
    return all(torch.equal(a[: len(b)], b) for a, b in zip(after, expected[1 : n + 1], strict=False) if a.numel())
