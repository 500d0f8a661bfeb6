"""How samples are drawn, for `armm generate` and for `armm reproduce`: one by one, in pieces, or by beam search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from armm.commands.prompting import Prompt, read
from armm.commands.request import Request
from armm.generation import Piece, Proposer, Sample, beam_search, best_of
from armm.generation.engine import Drawn
from armm.generation.sampling import Job, job_of
from armm.generation.streaming import pieces_of
from armm.model import AutoregressiveModel
from armm.sequence import Document


def read_prompt(model: AutoregressiveModel, prompt: Prompt, request: Request, option: str) -> Document:
    return read(model, prompt, option, open_end=not request.prompt_complete)


@dataclass(frozen=True)
class Wanted:
    """What is to be drawn, and how it is computed.

    Attributes:
        documents: the prompts. samples: as (prompt, index).
        proposer: who guesses ahead. batch_size: samples side by side.
    """

    model: AutoregressiveModel
    documents: Sequence[Document]
    request: Request
    seed: int
    samples: Sequence[tuple[int, int]]
    proposer: Proposer | None = None
    batch_size: int = 1


def draw(wanted: Wanted) -> Iterator[Drawn | Sample]:
    """Samples as they finish, and the symbols that they get on the way.

    Raises InputError: whatever does not fit the model or each other.
    """
    if wanted.request.beam is not None:
        return _search(wanted, wanted.request.beam)
    return _job(wanted).run()


def draw_pieces(wanted: Wanted) -> Iterator[Piece | Sample]:
    """The same, one sample at a time, with what can be shown of it as soon as it can be.

    Raises InputError: as `draw` does.
    """
    return pieces_of(_job(replace(wanted, batch_size=1)))


def best_ones(events: Iterable[Drawn | Sample], n: int, of: int) -> Iterator[Drawn | Sample]:
    """Events of `draw`, but of every `of` samples of a prompt only the n most probable, when all of them are there."""
    found: dict[int, list[Sample]] = {}
    for event in events:
        if not isinstance(event, Sample):
            yield event
            continue
        own = found.setdefault(event.prompt, [])
        own.append(event)
        if len(own) == of:
            yield from best_of(found.pop(event.prompt), n)


def _job(wanted: Wanted) -> Job:
    request, without = wanted.request, Prompt(wanted.request.without)
    return job_of(
        wanted.model,
        wanted.documents,
        n=1,
        seed=wanted.seed,
        filters=request.filters(wanted.model),
        proposer=wanted.proposer,
        stops=request.stop,
        max_symbols=request.max_symbols,
        prompt_complete=request.prompt_complete,
        plan=request.plan,
        guidance=request.guidance,
        without=read_prompt(wanted.model, without, request, "--without") if without.given else None,
        exact=request.exact,
        fast=None,
        batch_size=wanted.batch_size,
        samples=wanted.samples,
    )


def _search(wanted: Wanted, width: int) -> Iterator[Sample]:
    """Of each prompt the documents of some ranks, the samples' indices, that a beam search finds most probable."""
    request, ranks = wanted.request, dict[int, list[int]]()
    for prompt, rank in wanted.samples:
        ranks.setdefault(prompt, []).append(rank)
    for prompt, own in ranks.items():
        found = beam_search(
            wanted.model,
            wanted.documents[prompt],
            width=width,
            n_best=max(own) + 1,
            length_penalty=request.length_penalty,
            filters=request.filters(wanted.model),
            max_symbols=request.max_symbols,
            prompt_complete=request.prompt_complete,
            exact=request.exact,
        )
        yield from (replace(sample, prompt=prompt) for sample in found if sample.index in own)
