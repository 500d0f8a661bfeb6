"""How samples are drawn, for `armm generate` and for `armm reproduce`: one by one, in pieces, or by beam search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

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


def draw(
    model: AutoregressiveModel,
    documents: Sequence[Document],
    request: Request,
    seed: int,
    samples: Sequence[tuple[int, int]],
    proposer: Proposer | None = None,
    batch_size: int = 1,
) -> Iterator[Drawn | Sample]:
    """Samples, as (prompt, index), as they finish, and the symbols that they get on the way.

    Raises InputError: whatever does not fit the model or each other.
    """
    if request.beam is not None:
        return _search(model, documents, request, request.beam, samples)
    return _job(model, documents, request, seed, samples, proposer, batch_size).run()


def draw_pieces(
    model: AutoregressiveModel,
    documents: Sequence[Document],
    request: Request,
    seed: int,
    samples: Sequence[tuple[int, int]],
    proposer: Proposer | None = None,
) -> Iterator[Piece | Sample]:
    """The same, one sample at a time, with what can be shown of it as soon as it can be.

    Raises InputError: as `draw` does.
    """
    return pieces_of(_job(model, documents, request, seed, samples, proposer, batch_size=1))


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


def _job(
    model: AutoregressiveModel,
    documents: Sequence[Document],
    request: Request,
    seed: int,
    samples: Sequence[tuple[int, int]],
    proposer: Proposer | None,
    batch_size: int,
) -> Job:
    without = Prompt(request.without)
    return job_of(
        model,
        documents,
        n=1,
        seed=seed,
        filters=request.filters(model),
        proposer=proposer,
        stops=request.stop,
        max_symbols=request.max_symbols,
        prompt_complete=request.prompt_complete,
        plan=request.plan,
        guidance=request.guidance,
        without=read_prompt(model, without, request, "--without") if without.given else None,
        exact=request.exact,
        fast=None,
        batch_size=batch_size,
        samples=samples,
    )


def _search(
    model: AutoregressiveModel,
    documents: Sequence[Document],
    request: Request,
    width: int,
    ranks: Sequence[tuple[int, int]],
) -> Iterator[Sample]:
    """Of each prompt the documents of some ranks, as (prompt, rank): those that a beam search finds most probable."""
    wanted: dict[int, list[int]] = {}
    for prompt, rank in ranks:
        wanted.setdefault(prompt, []).append(rank)
    for prompt, own in wanted.items():
        found = beam_search(
            model,
            documents[prompt],
            width=width,
            n_best=max(own) + 1,
            length_penalty=request.length_penalty,
            filters=request.filters(model),
            max_symbols=request.max_symbols,
            prompt_complete=request.prompt_complete,
            exact=request.exact,
        )
        yield from (replace(sample, prompt=prompt) for sample in found if sample.index in own)
