"""`stream`: samples as they come, in pieces that can be shown at once: characters, rows of pixels, frames of sound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from armm.generation.engine import Drawn
from armm.generation.filter import Filter
from armm.generation.proposers import Proposer
from armm.generation.requests import start
from armm.generation.sampling import Job, Sample, job_of
from armm.generation.stops import StopWatch
from armm.model import AutoregressiveModel
from armm.sequence import Document


@dataclass(frozen=True)
class Piece:
    """What a sample has got since the last piece.

    Attributes:
        prompt, index: numbers of the prompt and the sample.
        symbols: of its stream, structure included.
        segment: the number of the segment that `data` belongs to. modality: its modality.
        data: what can be shown of them: a str of whole characters, (H, W) or (H, W, 3) pixels of new rows, (T,) audio
            samples; None where nothing whole has come, or the modality shows nothing in parts.
    """

    prompt: int
    index: int
    symbols: list[int]
    segment: int
    modality: str
    data: Any = None


def stream(
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
) -> Iterator[Piece | Sample]:
    """Pieces of samples as they are drawn, and each sample when it is finished. Takes what `generate` takes.

    The pieces of a text, joined, are the generated text: no character is split, and what may yet turn out to be a stop
    string is held back until it is known. Where a stop string came, nothing of it is shown.

    Yields: pieces of all samples that are being drawn, in turns, and the samples, as they finish.

    Raises InputError: as `generate` does.
    """
    job = job_of(
        model, prompts, n, seed, filters, proposer, stops, max_symbols, prompt_complete, plan, guidance, without, exact,
        fast, batch_size, samples,
    )  # fmt: skip
    return pieces_of(job)


def pieces_of(job: Job) -> Iterator[Piece | Sample]:
    """Those of a job, as `stream` gives them."""
    open_samples: dict[tuple[int, int], _Reader] = {}
    for event in job.run():
        key = (event.prompt, event.index)
        if key not in open_samples:
            read = start(job.model, job.prompts[event.prompt], job.prompt_complete).read
            open_samples[key] = _Reader(job.model, StopWatch(job.stops, job.model.grammar), read)
        reader = open_samples[key]
        if isinstance(event, Drawn):
            yield from (Piece(*key, *parts) for parts in reader.push(event.symbols))
        else:
            yield from (Piece(*key, *parts) for parts in reader.rest())
            del open_samples[key]
            yield event


Parts = tuple[list[int], int, str, Any]


class _Reader:
    """Follows one sample's symbols and cuts them into pieces."""

    def __init__(self, model: AutoregressiveModel, watch: StopWatch, read: list[int]) -> None:
        self.grammar, self.watch = model.grammar, watch
        watch.read(read)
        cursor = watch.cursor
        # characters or symbols of the open segment that have been shown, or were given
        self.shown = len(watch.whole) if watch.is_text(cursor.modality) else len(cursor.payload)

    def push(self, symbols: list[int]) -> Iterator[Parts]:
        """The pieces that new symbols make: one for each segment that they belong to."""
        cursor, watch, own = self.watch.cursor, self.watch, []
        for symbol in symbols:
            number, modality, header, payload = len(cursor.closed), cursor.modality, cursor.header, cursor.payload
            watch.push(symbol)
            own.append(symbol)
            if len(cursor.closed) > number:  # all of it can be shown now
                text = watch.text if watch.found else watch.finished
                yield own, number, modality, self._show(modality, header, payload, text)
                own, self.shown = [], 0
        if own:
            text = watch.text if watch.found else watch.whole[: len(watch.whole) - watch.held_back]
            data = self._show(cursor.modality, cursor.header, cursor.payload, text)
            yield own, len(cursor.closed), cursor.modality, data

    def rest(self) -> Iterator[Parts]:
        """What was held back, when nothing more comes."""
        cursor, watch = self.watch.cursor, self.watch
        if watch.is_text(cursor.modality) and not watch.found:
            data = self._show(cursor.modality, cursor.header, cursor.payload, watch.rest())
            if data is not None:
                yield [], len(cursor.closed), cursor.modality, data

    def _show(self, modality: str, header: tuple[int, ...], payload: list[int], text: str) -> Any:
        """What there is to show of a segment beyond what has been shown."""
        if self.watch.is_text(modality):
            new, self.shown = text[self.shown :], max(self.shown, len(text))
            return new or None
        if not modality or not payload:
            return None
        segment = self.grammar.segment(modality, header, payload)
        data, self.shown = self.grammar.modalities[modality].decode_part(segment, self.shown)
        return data
