"""`generate`: what users call. Checks what is asked for, and turns what the engine says into samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from armm.errors import InputError
from armm.generation.engine import Drawn, Engine, Finished, Settings
from armm.generation.exact import is_exact
from armm.generation.filter import Filter
from armm.generation.filters import arrange
from armm.generation.proposers import Draft, Proposer
from armm.generation.requests import Start, ends_by_itself, forced_controls, start, untold
from armm.graphs import records
from armm.model import AutoregressiveModel
from armm.sequence import Document


@dataclass(frozen=True)
class Sample:
    """One generated document.

    Attributes:
        index: the number of the sample, which with the seed, the prompt and the settings determines it.
        symbols: its stream, the prompt included.
        n_prompt: how many of them were read as the prompt.
        document: the stream, as segments.
        decoded: the raw data of every segment; a text that came to a stop string ends before it.
        log_probs: nats of every symbol after the prompt under the model, before filters.
        stop: why it ended: `end` (the document is complete), `context` (it is full), `length` (as many symbols as asked
            for), `stop` (a stop string) or `grammar` (nothing can follow).
        exact: it was computed by numbers that do not depend on what was computed beside it.
        prompt: the number of its prompt.
    """

    index: int
    symbols: list[int]
    n_prompt: int
    document: Document
    decoded: list[Any]
    log_probs: list[float]
    stop: str
    exact: bool
    prompt: int = 0


def generate(
    model: AutoregressiveModel,
    prompts: Sequence[Document] | None = None,
    *,
    n: int = 1,
    seed: int = 0,
    filters: Sequence[Filter] = (),
    proposer: Proposer | None = None,
    stops: Sequence[str] = (),
    max_symbols: int | None = None,
    prompt_complete: bool = False,
    plan: Sequence[str] | None = None,
    guidance: float | None = None,
    without: Document | None = None,
    exact: bool = True,
    fast: bool | None = None,
    batch_size: int = 16,
    samples: Sequence[tuple[int, int]] | None = None,
) -> Iterator[Sample]:
    """Sample documents.

    A sample is a function of the model, its prompt, the settings, the seed and its number: not of the batch it is
    computed in, of other prompts, or of how often the call was interrupted.

    Args:
        prompts: segments to begin with; the last one is continued. Payload symbols that are V are holes: everything
            else of the prompt is kept, and they are sampled in order, each given what is before it (this is not the
            posterior given the whole). One empty prompt by default.
        n: how many samples of each prompt.
        filters: applied in the order that `armm.generation.filters` documents.
        proposer: guesses ahead; changes the speed only.
        stops: a text ends before any of these strings.
        max_symbols: at most so many new symbols a document.
        prompt_complete: the last segment of a prompt ends where it ends, and something else follows.
        plan: for models of free documents, the modalities that the document shall have, in order, prompt included. Only
            control symbols are forced.
        guidance: strength of classifier-free guidance; 1 is none.
        without: what guidance steers away from: the prompt of the unconditional twin. By default the prompt, its
            segments before the one that goes on not told: unknown where the layout wants them, else absent.
        exact: pad products so that samples are the same to the last bit in any batch, if the machine lets them
            (`Sample.exact` says whether); False is faster for large float32 models and few rows.
        fast: take steps in compiled code where there is such (`pip install "armm[fast]"`): those of a transformer, and
            all symbols of a unit in heads with a loop for it. By default the former always, the latter unless `exact`.
            Samples do not depend on the batch either way, but are those of other last bits. On a GPU steps and whole
            units are recorded and replayed as CUDA graphs instead, with the same bits; False takes them one by one.
        batch_size: documents generated side by side. Changes the speed only.
        samples: which samples to make, as (prompt, number); numbers 0 to n - 1 of every prompt by default.

    Yields: samples, as they finish.

    Raises InputError: a prompt that does not fit the model, n < 1, settings that contradict each other.
    """
    job = job_of(
        model, prompts, n, seed, filters, proposer, stops, max_symbols, prompt_complete, plan, guidance, without, exact,
        fast, batch_size, samples,
    )  # fmt: skip
    # a generator of its own, so that mistakes show when this is called, not when the first sample is taken
    return (event for event in job.run() if isinstance(event, Sample))


@dataclass(frozen=True)
class Job:
    """Everything that is asked for at once; `generate` documents the fields."""

    model: AutoregressiveModel
    prompts: list[Document]
    samples: list[tuple[int, int]]
    seed: int
    filters: tuple[Filter, ...]
    proposer: Proposer | None
    stops: tuple[str, ...]
    max_symbols: int | None
    prompt_complete: bool
    plan: Sequence[str] | None
    guidance: float | None
    without: Document
    exact: bool
    fast: bool | None
    batch_size: int

    def check(self) -> None:
        """Raises InputError: something that does not fit the model or contradicts itself."""
        model, names = self.model, self.model.grammar.names
        if not self.samples:
            raise InputError("samples is empty, ask for at least 1")
        for prompt, number in self.samples:
            if not 0 <= prompt < len(self.prompts) or number < 0:
                n_prompts = len(self.prompts)
                raise InputError(
                    f"samples names ({prompt}, {number}); prompts are 0 to {n_prompts - 1}, numbers from 0"
                )
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, it must be at least 1")
        if self.max_symbols is not None and self.max_symbols < 1:
            raise InputError(f"max_symbols is {self.max_symbols}, ask for at least 1 symbol")
        if self.max_symbols is None and model.grammar.context is None and not ends_by_itself(model):
            raise InputError("documents of this model end at no length of their own; set max_symbols")
        if any(not stop for stop in self.stops):
            raise InputError("stops has an empty string, which every text contains; take it out")
        if self.stops and all(model.modalities[name].symbol_bytes() is None for name in names):
            raise InputError(f"stops ends texts, and this model has none; its modalities are {', '.join(names)}")
        if self.guidance is not None and not 0 <= self.guidance < float("inf"):
            raise InputError(f"guidance is {self.guidance}, it must be at least 0; 1 is none, 3 is strong")
        if self.guidance is None and self.without:
            raise InputError("without says what guidance steers away from; set guidance, or leave it out")
        if isinstance(self.proposer, Draft):
            self.proposer.check(model)
        alphabets = {name: modality.vocab for name, modality in model.modalities.items()}
        for keep in arrange(self.filters):
            keep.check(alphabets)
        forced_controls(model, self.plan, self.prompts)
        self._starts()

    def _starts(self) -> list[Start]:
        starts = [start(self.model, prompt, self.prompt_complete) for prompt in self.prompts]
        if self.guidance is None:
            return starts
        if self.without:
            twin = start(self.model, self.without, self.prompt_complete)
            if twin.n_holes:
                raise InputError("without has holes; it is only read, so give it whole")
            twins = [twin] * len(starts)
        else:
            twins = [untold(self.model, prompt, self.prompt_complete) for prompt in self.prompts]
        for own, twin in zip(starts, twins, strict=True):
            check_twins(self.model, own.read, twin.read)
        return [replace(own, without=twin.read) for own, twin in zip(starts, twins, strict=True)]

    def run(self) -> Iterator[Drawn | Sample]:
        """What happens, as it happens: symbols drawn, samples finished.

        The model is in evaluation mode while a step is computed, and as it was whenever the caller has the word.
        """
        events = self._events()
        while True:
            with evaluating(self.model):
                event = next(events, None)
            if event is None:
                return
            yield event

    def _events(self) -> Iterator[Drawn | Sample]:
        model = self.model
        compiled = self.fast is not False
        exact = self.exact and is_exact(model, compiled)
        # recorded units are the plain ones to the last bit, compiled ones are not
        fast = not self.exact or records(model.begin.device) if self.fast is None else self.fast
        settings = Settings(
            self.seed, arrange(self.filters), forced_controls(model, self.plan, self.prompts), self.max_symbols,
            self.batch_size, self.proposer, self.stops, self.guidance, exact, fast, compiled,
        )  # fmt: skip
        for event in Engine(model, self._starts(), self.samples, settings).run():
            yield event if isinstance(event, Drawn) else as_sample(model, event, exact)


@contextmanager
def evaluating(model: AutoregressiveModel) -> Iterator[None]:
    """Dropout off inside, and the model as it was outside."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def job_of(
    model: AutoregressiveModel,
    prompts: Sequence[Document] | None,
    n: int,
    seed: int,
    filters: Sequence[Filter],
    proposer: Proposer | None,
    stops: Sequence[str],
    max_symbols: int | None,
    prompt_complete: bool,
    plan: Sequence[str] | None,
    guidance: float | None,
    without: Document | None,
    exact: bool,
    fast: bool | None,
    batch_size: int,
    samples: Sequence[tuple[int, int]] | None,
) -> Job:
    """What `generate` and `stream` were asked for, checked.

    Raises InputError: as `generate` does.
    """
    if n < 1:
        raise InputError(f"n is {n}, ask for at least 1 sample")
    begins = list(prompts or [[]])
    wanted = [(prompt, number) for prompt in range(len(begins)) for number in range(n)] if samples is None else samples
    job = Job(
        model, begins, list(wanted), seed, tuple(filters), proposer, tuple(stops), max_symbols, prompt_complete, plan,
        guidance, without or [], exact, fast, batch_size,
    )  # fmt: skip
    job.check()
    return job


def check_twins(model: AutoregressiveModel, stream: Sequence[int], other: Sequence[int]) -> None:
    """Raises InputError: after two prompts not the same kind of symbol comes next, so that they cannot share it."""
    ends, positions = [], []
    for symbols in (stream, other):
        cursor = model.grammar.start()
        for symbol in symbols:
            model.grammar.push(cursor, symbol)
        n_left = None if cursor.n_total is None else cursor.n_total - len(cursor.payload)
        n_closed = len(cursor.closed) if model.grammar.layout else 0
        bounded = bool(cursor.modality) and model.modalities[cursor.modality].max_units is not None
        n_units = cursor.position - cursor.start if bounded else 0
        ends.append((cursor.slot(), cursor.unit_length, cursor.header, n_left, n_closed, n_units))
        positions.append(cursor.position)
    if model.grammar.context is not None and positions[1] > positions[0]:
        raise InputError(
            "the prompt of guidance's twin is longer than the prompt, so its context ends first; shorten it"
        )
    if ends[0] != ends[1]:
        raise InputError(
            "guidance needs a twin that goes on as the prompt does; give one as without, such as the same prompt "
            "without its condition"
        )


def as_sample(model: AutoregressiveModel, event: Finished, exact: bool) -> Sample:
    document = model.grammar.parse(event.symbols)
    decoded = [model.modalities[segment.modality].decode(segment) for segment in document]
    if event.text is not None:
        document, decoded = document[: event.segment + 1], [*decoded[: event.segment], event.text]
    return Sample(
        event.index, event.symbols, event.n_prompt, document, decoded, event.log_probs, event.stop, exact, event.prompt
    )
