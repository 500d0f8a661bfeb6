"""Search, on `State` alone: beam search, and choosing among samples. For every modality, head and backbone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from armm.errors import InputError
from armm.generation.draw import Drawer
from armm.generation.engine import Finished
from armm.generation.exact import is_exact
from armm.generation.filter import Filter, Row, where_prompt_ends
from armm.generation.filters import Temperature, arrange
from armm.generation.requests import ends_by_itself, start
from armm.generation.sampling import Sample, as_sample, evaluating
from armm.grammar import Stage
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.state import State


@dataclass(frozen=True)
class Beam:
    """A document being searched for: its symbols after the prompt, and their log-probabilities."""

    symbols: tuple[int, ...]
    nats: tuple[float, ...]
    stop: str = ""

    def score(self, length_penalty: float) -> float:
        """Log-probability over length to the power of the penalty (Wu et al., arXiv:1609.08144, without the 5)."""
        return sum(self.nats) / max(len(self.symbols), 1) ** length_penalty


@torch.inference_mode()
def beam_search(
    model: AutoregressiveModel,
    prompt: Document | None = None,
    *,
    width: int = 4,
    n_best: int = 1,
    length_penalty: float = 0.0,
    filters: Sequence[Filter] = (),
    max_symbols: int | None = None,
    prompt_complete: bool = False,
    exact: bool = True,
) -> list[Sample]:
    """The most probable documents that a search of a given width finds.

    Every step keeps the `width` best beginnings of all continuations of the last ones. A document that ends, or has
    `max_symbols`, takes part with its final score; the search stops when no beginning can still beat the `n_best` best
    of them, where that can be told (log-probabilities only fall, so with `length_penalty` 0), and otherwise when
    `width` documents have ended or none is left.

    Args:
        width: beginnings kept.
        n_best: how many to return, at most `width`.
        length_penalty: 0 ranks by log-probability, 1 by its average per symbol; between and beyond, by its power.
        filters: rule symbols out; the scores are the model's own log-probabilities. No temperature: order is all.
        max_symbols: at most so many new symbols.

    Returns: samples, the best first; their index is their rank.

    Raises InputError: a prompt that does not fit, a width or n_best that makes no sense.
    """
    if width < 1:
        raise InputError(f"width is {width}, it must be at least 1; 1 is greedy search")
    if not 1 <= n_best <= width:
        raise InputError(f"n_best is {n_best}, it must be between 1 and the width, {width}")
    if max_symbols is not None and max_symbols < 1:
        raise InputError(f"max_symbols is {max_symbols}, ask for at least 1 symbol")
    if max_symbols is None and model.grammar.context is None and not ends_by_itself(model):
        raise InputError("documents of this model end at no length of their own; set max_symbols")
    if any(isinstance(keep, Temperature) for keep in filters):
        raise InputError("beam search ranks by log-probability, which a temperature does not change; leave it out")
    begin = start(model, prompt or [], prompt_complete)
    if begin.n_holes:
        raise InputError("beam search continues a prompt and does not fill holes; give the prompt whole")
    with evaluating(model):
        exactly = exact and is_exact(model)
        state = model.state(1, exactly)
        state.append([begin.read])
        began = where_prompt_ends(state.cursors[0])
        search = _Search(model, arrange(filters), width, length_penalty, max_symbols, began)
        ended = search.run(state, n_best)
    samples = []
    for rank, beam in enumerate(ended[:n_best]):
        event = Finished(0, rank, [*begin.read, *beam.symbols], len(begin.read), list(beam.nats), beam.stop)
        samples.append(as_sample(model, event, exactly))
    return samples


@dataclass
class _Search:
    model: AutoregressiveModel
    filters: Sequence[Filter]
    width: int
    length_penalty: float
    max_symbols: int | None
    began: tuple[int, int]

    def run(self, state: State, n_best: int) -> list[Beam]:
        """Ended documents, the best first."""
        beams, ended = [Beam((), ())], []
        drawer = Drawer(0, self.filters, state.device)
        while True:
            for row, beam in enumerate(beams):
                if stop := self._stop(state, row, beam):
                    ended.append(replace(beam, stop=stop))
            going = [row for row, beam in enumerate(beams) if not self._stop(state, row, beam)]
            ended.sort(key=self._rank)
            beams = [beams[row] for row in going]
            if not beams or self._settled(beams, ended, n_best):
                return ended
            if len(going) < state.n_rows:
                state.gather_rows(going)
            logits = state.logits(range(len(beams)))
            kept = drawer.filtered(logits, [Row.at(cursor, self.began) for cursor in state.cursors])
            nats = logits.log_softmax(-1).masked_fill(kept == float("-inf"), float("-inf"))
            before = torch.tensor([sum(beam.nats) for beam in beams], device=nats.device, dtype=torch.float64)
            total = (nats.double() + before[:, None]).flatten()
            best = total.topk(min(self.width, len(total)))
            chosen = best.indices[best.values > float("-inf")].tolist()
            rows = [i // nats.shape[1] for i in chosen]
            symbols = [i % nats.shape[1] for i in chosen]
            beams = [
                Beam((*beams[row].symbols, symbol), (*beams[row].nats, float(nats[row, symbol])))
                for row, symbol in zip(rows, symbols, strict=True)
            ]
            state.gather_rows(rows)
            state.append([[symbol] for symbol in symbols])

    def _rank(self, beam: Beam) -> float:
        return -beam.score(self.length_penalty)

    def _stop(self, state: State, row: int, beam: Beam) -> str:
        cursor = state.cursors[row]
        if cursor.stage == Stage.DONE:
            return "context" if cursor.cut else "end"
        if self.filters and any(keep.complete(Row.at(cursor, self.began)) for keep in self.filters):
            return "grammar"
        return "length" if self.max_symbols is not None and len(beam.symbols) >= self.max_symbols else ""

    def _settled(self, beams: list[Beam], ended: list[Beam], n_best: int) -> bool:
        """Whether what goes on cannot change the best any more."""
        if len(ended) < n_best:
            return False
        if self.length_penalty == 0:
            return max(sum(beam.nats) for beam in beams) <= ended[n_best - 1].score(0)
        return len(ended) >= self.width


def best_of(samples: Iterable[Sample], n: int = 1, *, per_symbol: bool = True) -> list[Sample]:
    """The n samples that the model finds most probable.

    Args:
        per_symbol: by the average log-probability of a symbol, so that short ones have no advantage; else by the sum.
    """

    def score(sample: Sample) -> float:
        total = sum(sample.log_probs)
        return total / max(len(sample.log_probs), 1) if per_symbol else total

    return sorted(samples, key=lambda sample: (-score(sample), sample.prompt, sample.index))[:n]


def self_consistency(samples: Iterable[Sample], answer: Callable[[Sample], Hashable | None]) -> tuple[Any, float]:
    """The answer that most samples come to (self-consistency, Wang et al., arXiv:2203.11171).

    Args:
        answer: what a sample answers; None for no answer, which has no vote.

    Returns: the answer with the most votes (of equals the one that came first by sample number), and its share of all
        votes.

    Raises InputError: no sample has an answer.
    """
    ordered = sorted(samples, key=lambda sample: (sample.prompt, sample.index))
    votes = Counter(own for sample in ordered if (own := answer(sample)) is not None)
    if not votes:
        raise InputError(f"none of {len(ordered)} samples has an answer; draw more, or let `answer` accept more")
    winner, count = votes.most_common(1)[0]
    return winner, count / votes.total()
