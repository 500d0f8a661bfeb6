"""`armm generate RUN`: sample documents and write them as files, each with where it came from."""

from __future__ import annotations

import argparse
import platform
import re
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, TextIO

import torch

from armm import bundle
from armm.commands import origin as origins
from armm.commands.drawing import Wanted, best_ones, draw, draw_pieces, read_prompt
from armm.commands.live import Live
from armm.commands.options import OptionParser
from armm.commands.origin import Machine, Model, Origin, Versions, write_whole, write_with_origin
from armm.commands.progress import Progress, enough_memory
from armm.commands.prompting import Given, Prompt, parse_given, parse_lines, sha256
from armm.commands.request_options import add_filter_options, add_search_options, parse_proposer, parse_request
from armm.errors import InputError
from armm.generation import Piece, Proposer, Sample
from armm.generation.engine import Drawn
from armm.memory import keep_freed_memory
from armm.model import AutoregressiveModel
from armm.prepacking import prepack
from armm.sequence import Document

DEFAULT_LENGTH = 1000  # symbols, for models whose documents have no end of their own


def parser() -> OptionParser:
    p = OptionParser("generate", "Sample from a trained model.")
    p.add_argument("run", help="a run folder, its model/, or a bundle")
    p.add_argument("--n", type=int, default=1, help="samples of each prompt (default 1)")
    p.add_argument("--seed", type=int, default=0, help="with a sample's number, all that it depends on (default 0)")
    p.add_argument("--out", type=Path, default=Path("samples"), help="folder for the files (default samples/)")
    g = p.add_argument_group("what it begins with")
    g.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="[NAME=]VALUE",
        help="a text, a label, the file of an image's top rows or of a clip's first seconds; NAME where the model has "
        'several modalities; repeat for several segments, or write them as JSON: \'[{"text": "seven"}]\'',
    )
    g.add_argument("--then", metavar="NAMES", help="the prompt is whole; what follows, such as audio or image,text")
    g.add_argument("--prompts", type=Path, metavar="FILE", help="one text prompt a line, each after what --prompt says")
    g.add_argument("--mask", type=Path, metavar="PNG", help="sample the pixels of the prompt that are black in it")
    g.add_argument("--prompt-complete", action="store_true", help="the last prompt is whole; something else follows it")
    add_filter_options(p)
    add_search_options(p)
    g = p.add_argument_group("where it ends")
    g.add_argument(
        "--max-symbols", type=int, metavar="N", help=f"at most N new symbols (default {DEFAULT_LENGTH} where needed)"
    )
    g.add_argument("--stop", action="append", default=[], metavar="STRING", help="end a text before it; repeatable")
    g.add_argument("--plan", metavar="NAMES", help="the modalities of a free document in order, such as text,image")
    g = p.add_argument_group("how it is computed")
    g.add_argument("--weights", default="float", help="float, bf16, int8 or int4 (default float)")
    g.add_argument("--approximate", action="store_true", help="faster; the batch may change a sample's last bits")
    g.add_argument("--batch-size", type=int, default=16, metavar="N", help="samples side by side (default 16)")
    g.add_argument("--proposer", metavar="WHO", help="guesses ahead: ngram, draft:RUN, fixed-point, unit-above or hold")
    g.add_argument("--device", default="cpu", help="where to run, such as cuda (default cpu)")
    g = p.add_argument_group("what is shown")
    g.add_argument(
        "--stream",
        action="store_true",
        help="text as it is drawn, one sample at a time; of sound, 16-bit samples into a pipe",
    )
    return p


def run(arguments: list[str]) -> int:
    """Run `armm generate`.

    Raises InputError: whatever is not right about the model, the prompts or the options, or no memory is left.
    """
    options = parser().parse_args(arguments)
    if options.n < 1:
        raise InputError(f"--n is {options.n}, ask for at least 1 sample")
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file; name a folder")
    if options.mask is not None and (options.prompts is not None or not options.prompt):
        raise InputError("--mask says which pixels of an image are kept; give the image with --prompt, not --prompts")
    if options.stream and options.beam is not None:
        raise InputError("--stream shows what is drawn, --beam has its documents at the end; leave out one of them")
    keep_freed_memory()
    place = bundle.find(options.run)
    model = prepack(bundle.load(place, options.device, options.weights))
    request = parse_request(model, options, DEFAULT_LENGTH)
    live = Live(model) if options.stream else None
    prompts, names = read_prompts(model, options)
    documents = [read_prompt(model, own, request, name) for own, name in zip(prompts, names, strict=True)]
    made_by = Model(str(place), bundle.content_hash(place))
    origin = Origin(options.seed, 0, 0, prompts[0], request, made_by, this_machine(model))
    proposer = parse_proposer(model, options.proposer, options.device)
    samples = Collection(model, options.out, origin, prompts, options.prompts is not None, options.n, live)
    samples.make(documents, proposer, options.batch_size)
    samples.report()
    return 0


def read_prompts(model: AutoregressiveModel, options: argparse.Namespace) -> tuple[list[Prompt], list[str]]:
    """What samples begin with, and what that is called in messages."""
    given = parse_given(model, options.prompt, "--prompt")
    if options.prompts is None:
        mask = None if options.mask is None else Given("", str(options.mask), sha256(options.mask))
        return [Prompt(given, mask)], ["--prompt"]
    lines = parse_lines(model, options.prompts)
    names = [f"--prompts {options.prompts} line {number}:" for number in range(1, len(lines) + 1)]
    return [Prompt((*given, line)) for line in lines], names


def this_machine(model: AutoregressiveModel) -> Machine:
    numba = version("numba") if find_spec("numba") else ""
    versions = Versions(version("armm"), torch.__version__, platform.python_version(), numba)
    return Machine(versions, str(model.begin.device), torch.get_num_threads())


# -------------------------------------------------------------------- the samples


@dataclass(frozen=True)
class Made:
    """A sample that is in files: its raw data by modality, and whether it was there before."""

    raws: list[tuple[str, Any]]
    n_symbols: int
    exact: bool
    kept: bool = False


@dataclass
class Collection:
    """The samples that one command asks for: kept where they are there, made where they are not.

    Attributes:
        origin: of all of them, but for the number of prompt and sample.
        numbered: whether names of files carry the prompt's number.
        n: samples of each prompt.
        live: shows samples while they are drawn.
        present: names of the files that are there, in order.
        made: the samples that are in files, by prompt and index.
    """

    model: AutoregressiveModel
    folder: Path
    origin: Origin
    prompts: list[Prompt]
    numbered: bool
    n: int
    live: Live | None = None
    present: list[str] = field(default_factory=list)
    made: dict[tuple[int, int], Made] = field(default_factory=dict)
    seconds: float = 0.0

    def make(self, documents: Sequence[Document], proposer: Proposer | None, batch_size: int) -> None:
        """Write the samples that are missing, each as it finishes.

        Raises InputError: something does not fit, a file cannot be written, or no memory is left.
        """
        self._find_kept()
        missing = self._missing()
        if not missing:
            return
        request, n_wanted = self.origin.request, len(self.prompts) * self.n
        wanted = Wanted(self.model, documents, request, self.origin.seed, missing, proposer, batch_size)
        events: Iterator[Drawn | Piece | Sample]
        if self.live is not None:
            events = draw_pieces(wanted)
        elif request.best_of is not None:
            events = best_ones(draw(wanted), self.n, request.best_of)
        else:
            events = draw(wanted)
        began, progress = time.perf_counter(), Progress(n_wanted - len(self.made), alone=self.live is None)
        try:
            with enough_memory(lambda: f"{len(self.made)} of {n_wanted} samples are in {self.folder}"):
                for event in events:
                    if isinstance(event, Sample):
                        self._write(event)
                        progress.sample()
                        if self.live is not None:
                            self.live.end()
                        continue
                    progress.symbols(len(event.symbols))
                    if self.live is not None and isinstance(event, Piece):
                        self.live.show(event)
        except KeyboardInterrupt:
            state = f"{len(self.made)} of {n_wanted} samples are in {self.folder}"
            print(f"\n{state}; the same command makes the others", file=self._words)
            raise
        finally:
            progress.clear()
            self.seconds = time.perf_counter() - began

    def _find_kept(self) -> None:
        """The samples that are in files; of the best of several, those of prompts that have all of theirs."""
        self.present = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        for key in self._drawn():
            if (kept := self._kept(*key)) is not None:
                self.made[key] = kept
        if self.origin.request.best_of is not None:
            n_kept = Counter(prompt for prompt, _ in self.made)
            self.made = {key: kept for key, kept in self.made.items() if n_kept[key[0]] == self.n}

    def _missing(self) -> list[tuple[int, int]]:
        """The samples, as (prompt, index), that have to be drawn."""
        whole = {prompt for prompt, _ in self.made} if self.origin.request.best_of is not None else set()
        return [key for key in self._drawn() if key not in self.made and key[0] not in whole]

    def _drawn(self) -> list[tuple[int, int]]:
        """All that would be drawn if nothing were kept, as (prompt, index)."""
        n = self.origin.request.best_of or self.n
        return [(prompt, index) for prompt in range(len(self.prompts)) for index in range(n)]

    def report(self) -> None:
        """Show what can be shown, and how long it took."""
        done = [self.made[key] for key in sorted(self.made)]
        raws = [raw for own in done for raw in own.raws]
        show(self.model, raws, self.folder, texts=self.live is None)
        kept = sum(own.kept for own in done)
        n_symbols = sum(own.n_symbols for own in done)
        rate = n_symbols / max(self.seconds, 1e-9)
        counts = "1 sample" if len(done) == 1 else f"{len(done)} samples"
        counts += f" (kept {kept}, made {len(done) - kept})" if kept else ""
        print(
            f"{counts}, {n_symbols:,} symbols in {self.seconds:.1f} s ({rate:,.0f} a second), "
            f"{'exact' if all(own.exact for own in done) else 'approximate'}, in {self.folder}",
            file=self._words,
        )

    @property
    def _words(self) -> TextIO:
        """Where to say things: not among what is being shown."""
        return sys.stdout if self.live is None else sys.stderr

    def _write(self, sample: Sample) -> None:
        key = sample.prompt, sample.index
        origin = replace(self._origin(*key), exact=sample.exact, stop=sample.stop)
        shown = write(self.model, sample, self.folder, self._stem(*key), origin)
        self.made[key] = Made(shown, len(sample.log_probs), sample.exact)

    def _origin(self, prompt: int, index: int) -> Origin:
        return replace(self.origin, prompt_number=prompt, index=index, prompt=self.prompts[prompt])

    def _stem(self, prompt: int, index: int) -> str:
        """How the names of a sample's files begin."""
        middle = f"{prompt:04d}-" if self.numbered else ""
        return f"{self.origin.seed}-{middle}{index:04d}"

    def _kept(self, prompt: int, index: int) -> Made | None:
        """A sample that is there already, all its files from the same origin."""
        stem, wanted = self._stem(prompt, index), self._origin(prompt, index)
        own = re.compile(re.escape(stem) + r"(-\d+-\w+)?\.\w+")
        first = bisect_left(self.present, stem)
        for name in takewhile(lambda name: name.startswith(stem), islice(self.present, first, None)):
            found = same(self.folder / name, wanted) if own.fullmatch(name) else None
            if found is None or not found.files or not all(own.fullmatch(other) for other in found.files):
                continue
            files = [self.folder / other for other in found.files]
            if all(path.is_file() and same(path, wanted) for path in files):
                return Made([raw for path in files for raw in self._load(path)], 0, found.exact, kept=True)
        return None

    def _load(self, path: Path) -> list[tuple[str, Any]]:
        """What a kept file shows; nothing where its modality cannot read it."""
        found = same(path, None)
        if found is None or found.modality not in self.model.modalities:
            return []
        modality = self.model.modalities[found.modality]
        if not path.stat().st_size and modality.symbol_bytes() is not None:
            return [(found.modality, "")]  # which no one but a model means to write
        try:
            return [(found.modality, modality.load(path))]
        except InputError:  # a label, or a clip without samples
            return []


def same(path: Path, wanted: Origin | None) -> Origin | None:
    """Where a file came from, if that is the sample that is wanted."""
    try:
        found = origins.read(path)
    except InputError:  # damaged: it is made anew
        return None
    return found if found is not None and (wanted is None or found.same_sample(wanted)) else None


def write(model: AutoregressiveModel, sample: Sample, folder: Path, stem: str, origin: Origin) -> list[tuple[str, Any]]:
    """One file, and its views, for every segment of a sample that a file can hold; what they show, by modality.

    Raises InputError: the files cannot be written.
    """
    parts = list(zip(sample.document, sample.decoded, strict=True))
    written = with_files(model, sample)
    paths: dict[int, Path] = {}
    for number in written:
        name = parts[number][0].modality
        middle = f"-{number}-{name}" if len(written) > 1 else ""
        paths[number] = folder / f"{stem}{middle}{model.modalities[name].suffix}"
    files = tuple(path.name for path in paths.values())
    for number, path in paths.items():
        segment, raw = parts[number]
        modality = model.modalities[segment.modality]
        own = replace(origin, segment=number, modality=segment.modality, files=files)
        for view in modality.views:
            write_whole(path.with_suffix(view), partial(modality.save, raw))
        write_with_origin(path, partial(modality.save, raw), own)
    return [(parts[number][0].modality, parts[number][1]) for number in written]


def with_files(model: AutoregressiveModel, sample: Sample) -> list[int]:
    """The numbers of the segments that are worth a file.

    Those whose modality reads files; of the others those that were made, but for a label where more was made.
    """
    prompt = model.grammar.parse(sample.symbols[: sample.n_prompt])
    numbered = list(enumerate(sample.document))
    made = [i for i, s in numbered if i >= len(prompt) or (i == len(prompt) - 1 and s.length > prompt[i].length)]
    is_label = {i: not model.modalities[s.modality].ended and s.n_units <= 1 for i, s in numbered}
    reads = [i for i, s in numbered if model.modalities[s.modality].suffixes]
    found = sorted({*reads, *(i for i in made if not is_label[i])})
    return found if set(found) & set(made) or not made else sorted({*found, *made})


def show(model: AutoregressiveModel, shown: Sequence[tuple[str, Any]], folder: Path, texts: bool = True) -> None:
    """Print generated texts; lay generated images out in one picture."""
    for name, modality in model.modalities.items():
        raws = [raw for key, raw in shown if key == name]
        if not raws:
            continue
        preview = modality.preview(raws)
        if preview.kind == "text":
            if texts:
                print(preview.data)
        elif preview.kind == "image" and len(raws) > 1:
            from PIL import Image

            write_whole(folder / f"{name}-grid.png", Image.fromarray(preview.data).save)
