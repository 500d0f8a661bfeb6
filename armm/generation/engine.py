"""Sampling on `State`: it knows streams of symbols and no modality.

Every symbol is `argmax(filtered logits + noise)`, the noise a pure function of (seed, sample, position, value). So a
sample is the same alone, in a batch, or in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from armm.errors import InputError, nearest
from armm.generation.filters import Filter
from armm.generation.noise import gumbel
from armm.grammar import END, Stage
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.state import State

NOISE_BLOCK = 1 << 16  # noise values computed at once, so that hashing costs little per symbol


@dataclass(frozen=True)
class Sample:
    """One generated document.

    Attributes:
        index: the number of the sample, which with the seed determines it.
        symbols: its stream, the prompt included.
        n_prompt: how many of them were given.
        document: the stream, read.
        log_probs: nats of every generated symbol under the model, before filters.
        stop: why it ended: `end` (the document is complete), `context` (it is full) or `length` (as many as asked for).
    """

    index: int
    symbols: list[int]
    n_prompt: int
    document: Document
    log_probs: list[float]
    stop: str


class NoiseBlock:
    """Noise of the next positions of some rows, computed a block at a time."""

    def __init__(self, seed: int, samples: Sequence[int], device: torch.device) -> None:
        self.seed, self.samples = seed, torch.tensor(list(samples), dtype=torch.int64, device=device)
        self.first: list[int] = []
        self.block = torch.empty(0)
        self.used = 0

    def next(self, positions: list[int], vocab: int) -> Tensor:
        """(R, V) noise at the rows' (R,) positions, which usually follow those of the call before."""
        fits = self.block.dim() == 3 and self.used < self.block.shape[1] and self.block.shape[2] == vocab
        if not fits or positions != [first + self.used for first in self.first]:
            n = max(1, min(256, NOISE_BLOCK // (vocab * len(positions))))
            at = torch.tensor(positions, device=self.samples.device)[:, None] + torch.arange(
                n, device=self.samples.device
            )
            self.block = gumbel(self.seed, self.samples[:, None].expand_as(at), at, vocab)
            self.first, self.used = positions, 0
        noise = self.block[:, self.used]
        self.used += 1
        return noise


def generate(
    model: AutoregressiveModel,
    n: int = 1,
    *,
    prompts: Sequence[Document] | None = None,
    prompt_complete: bool = False,
    plan: Sequence[str] | None = None,
    seed: int = 0,
    filters: Sequence[Filter] = (),
    max_symbols: int | None = None,
    batch_size: int = 16,
    samples: Sequence[int] | None = None,
) -> Iterator[Sample]:
    """Sample documents.

    Args:
        n: how many.
        prompts: segments to begin with; the last one is continued. Sample k takes prompt k modulo their number.
        prompt_complete: the last segment of a prompt ends where it ends, and something else follows.
        plan: for models of free documents, the modalities that the document shall have, in order, prompt included. Only
            control symbols are forced.
        seed: with the number of the sample, all that the result depends on.
        filters: applied to the logits in this order.
        max_symbols: at most so many new symbols a document.
        batch_size: documents generated side by side. Changes the speed only.
        samples: the numbers of the samples to make; `range(n)` by default.

    Yields: samples, in the order of their numbers.

    Raises InputError: a prompt that does not fit the model, n < 1.
    """
    numbers = list(samples) if samples is not None else list(range(n))
    if n < 1 or not numbers:
        raise InputError(f"n is {n}, ask for at least 1 sample" if n < 1 else "samples is empty, ask for at least 1")
    if min(numbers) < 0:
        raise InputError(f"samples names {min(numbers)}; samples are numbered from 0")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, it must be at least 1")
    if max_symbols is not None and max_symbols < 1:
        raise InputError(f"max_symbols is {max_symbols}, ask for at least 1 symbol")
    if max_symbols is None and model.grammar.context is None and not ends_by_itself(model):
        raise InputError("documents of this model end at no length of their own; set max_symbols")
    prompts = list(prompts) if prompts else [[]]
    forced = check_plan(model, plan, prompts)
    streams = [prompt_stream(model, prompt, prompt_complete) for prompt in prompts]

    def run() -> Iterator[Sample]:
        training = model.training
        model.eval()
        try:
            for first in range(0, len(numbers), batch_size):
                batch = numbers[first : first + batch_size]
                begins = [streams[number % len(streams)] for number in batch]
                yield from _generate_batch(model, batch, begins, forced, seed, filters, max_symbols)
        finally:
            model.train(training)

    return run()  # so that mistakes show when it is called, not when the first sample is taken


def ends_by_itself(model: AutoregressiveModel) -> bool:
    """Whether every document of a model comes to an end of its own, before any limit of the context."""
    grammar = model.grammar
    modalities = [grammar.modalities[name] for name in grammar.layout or grammar.names]
    return all(m.ended or m.n_units(m.header((0,) * len(m.header_sizes))) is not None for m in modalities)


def prompt_stream(model: AutoregressiveModel, prompt: Document, complete: bool = False) -> list[int]:
    """The stream of a prompt; none for an empty one.

    Raises InputError: it names other modalities than the model's, or leaves no room in the context.
    """
    grammar = model.grammar
    if not prompt:
        return []
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
    n_units = grammar.n_units(prompt)
    if grammar.context is not None and n_units >= grammar.context:
        raise InputError(
            f"the prompt has {n_units} units, the model's context is {grammar.context}; shorten the prompt"
        )
    stream = grammar.flatten(prompt, open_end=not complete)
    return stream[:-1] if complete and grammar.layout is None else stream  # without the symbol that ends a document


def check_plan(model: AutoregressiveModel, plan: Sequence[str] | None, prompts: Sequence[Document]) -> list[int] | None:
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


@torch.inference_mode()
def _generate_batch(
    model: AutoregressiveModel,
    numbers: list[int],
    begins: list[list[int]],
    forced: list[int] | None,
    seed: int,
    filters: Sequence[Filter],
    max_symbols: int | None,
) -> Iterator[Sample]:
    distinct = list({tuple(begin): begin for begin in begins}.values())
    state = model.state(len(distinct))
    logits = state.extend(distinct)
    share = [distinct.index(begin) for begin in begins]  # samples of one prompt share its reading
    state.gather_rows(share)
    logits = logits[share]
    rows = list(range(len(numbers)))  # rows of the state, as places in `numbers`
    finished: dict[int, Sample] = {}
    n_yielded = 0
    log_probs: list[list[float]] = [[] for _ in numbers]
    noise = NoiseBlock(seed, numbers, model.begin.device)
    while rows:
        for row, (place, cursor) in enumerate(zip(rows, state.cursors, strict=True)):
            done = cursor.stage == Stage.DONE
            if not done and (max_symbols is None or len(log_probs[place]) < max_symbols):
                continue
            stop = "length" if not done else "context" if cursor.cut else "end"
            symbols = list(state.streams[row])
            document = model.grammar.parse(symbols)
            finished[place] = Sample(numbers[place], symbols, len(begins[place]), document, log_probs[place], stop)
        while n_yielded in finished:  # in order, each as soon as those before it are there
            yield finished[n_yielded]
            n_yielded += 1
        going = [i for i, place in enumerate(rows) if place not in finished]
        if len(going) < len(rows):
            if not going:
                break
            state.gather_rows(going)
            rows, logits = [rows[i] for i in going], logits[going]
            noise = NoiseBlock(seed, [numbers[place] for place in rows], model.begin.device)
        chosen = _force(state, logits, forced)
        for keep in filters:
            chosen = keep(chosen)
        symbols = (chosen + noise.next(state.lengths, logits.shape[-1])).argmax(dim=-1)
        nats = logits.log_softmax(-1).gather(-1, symbols[:, None])[:, 0].tolist()
        for place, value in zip(rows, nats, strict=True):
            log_probs[place].append(value)
        logits = state.extend(symbols[:, None])


def _force(state: State, logits: Tensor, forced: list[int] | None) -> Tensor:
    """Where a plan says what begins next, leave that control symbol alone."""
    if forced is None:
        return logits
    for row, cursor in enumerate(state.cursors):
        if cursor.stage == Stage.CONTROL:
            wanted = forced[len(cursor.closed)]
            logits = logits.clone()
            logits[row] = float("-inf")
            logits[row, wanted] = 0.0
    return logits
