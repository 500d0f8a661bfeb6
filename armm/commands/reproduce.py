"""`armm reproduce FILE`: make a sample again from what its file says, and compare the two."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armm import bundle
from armm.commands import origin as origins
from armm.commands.drawing import Wanted, draw, read_prompt
from armm.commands.generate import this_machine
from armm.commands.options import OptionParser
from armm.commands.origin import Machine, Origin
from armm.commands.prompting import about_file, sha256
from armm.errors import InputError
from armm.generation import Sample
from armm.model import AutoregressiveModel
from armm.prepacking import prepack

MOST_THREADS = 256  # more than that is no machine but a damaged number


def parser() -> OptionParser:
    p = OptionParser("reproduce", "Make a sample again from what its file says, and compare the two.")
    p.add_argument("file", type=Path, metavar="FILE", help="a file that armm generate wrote")
    p.add_argument("--run", help="where the model is now (default: where it was)")
    p.add_argument("--anyway", action="store_true", help="compare even if the model is another one")
    p.add_argument("--device", help="where to run, such as cuda (default: where it was made)")
    return p


def run(arguments: list[str]) -> int:
    """Run `armm reproduce`; 1 if the sample is another one.

    Raises InputError: the file does not say where it came from, or that is not here.
    """
    options = parser().parse_args(arguments)
    origin = origins.read(options.file)
    if origin is None:
        raise InputError(
            f"{options.file} does not say where it came from; name a file as armm generate wrote it, not one saved anew"
        )
    if options.run is None and not Path(origin.model.path).exists():
        raise InputError(f"{options.file} was made by {origin.model.path}, which is not here; name it with --run")
    place = bundle.find(options.run or origin.model.path)
    found = bundle.content_hash(place)
    if found != origin.model.hash:
        message = f"{options.file} was made by a model of hash {origin.model.hash}, {place} has {found}"
        if not options.anyway:
            raise InputError(f"{message}; name the model with --run, or add --anyway")
        print(message)
    with about_file(options.file), as_many_threads(origin.machine.threads):
        model = prepack(bundle.load(place, options.device or origin.machine.device, origin.request.weights))
        for change in changes(origin, this_machine(model)):
            print(f"{options.file}: {change}")
        expected = make_again(model, origin)
    difference = first_difference(expected, options.file.read_bytes())
    if difference is None:
        print(f"{options.file}: identical")
        return 0
    approximate = "" if origin.exact else "; it was approximate, so it may differ from run to run"
    print(f"{options.file}: {difference}{approximate}")
    return 1


@contextmanager
def as_many_threads(n: int) -> Iterator[None]:
    """Compute with n threads inside: sums are taken in another order by another number of them.

    Raises InputError: no machine has so many.
    """
    if not 1 <= n <= MOST_THREADS:
        raise InputError(f"its provenance is damaged: threads is {n}")
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def changes(origin: Origin, now: Machine) -> Iterator[str]:
    """A line for everything that is no longer as it was."""
    given = [*origin.prompt.given, *origin.request.without, *filter(None, [origin.prompt.mask])]
    for own in given:
        if own.sha256 and sha256(Path(own.value)) not in ("", own.sha256):
            yield f"the prompt file {own.value} has changed since"
    was, is_ = origin.machine, now
    pairs = [
        (f"armm {was.versions.armm}", f"armm {is_.versions.armm}"),
        (f"torch {was.versions.torch}", f"torch {is_.versions.torch}"),
        (f"Python {was.versions.python}", f"Python {is_.versions.python}"),
        (f"numba {was.versions.numba or 'absent'}", f"numba {is_.versions.numba or 'absent'}"),
        (f"device {was.device}", f"device {is_.device}"),
    ]
    others = [f"{before}, now {after}" for before, after in pairs if before != after]
    if others:
        yield f"made with {'; '.join(others)}"


def make_again(model: AutoregressiveModel, origin: Origin) -> bytes:
    """The content of a sample's file, but for its origin.

    Raises InputError: the model cannot do what the origin asks for.
    """
    if origin.modality not in model.modalities:
        raise InputError(f"it shows {origin.modality!r}, this model has {', '.join(model.modalities)}")
    document = read_prompt(model, origin.prompt, origin.request, "its prompt")
    events = draw(Wanted(model, [document], origin.request, origin.seed, [(0, origin.index)]))
    sample = next(event for event in events if isinstance(event, Sample))
    names = [segment.modality for segment in sample.document]
    if not 0 <= origin.segment < len(names) or names[origin.segment] != origin.modality:
        raise InputError(
            f"it is segment {origin.segment} ({origin.modality}) of a sample, made again that is {', '.join(names)}"
        )
    modality = model.modalities[origin.modality]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"sample{modality.suffix}"
        modality.save(sample.decoded[origin.segment], path)
        return path.read_bytes()


# ------------------------------------------------------------------- comparing


def first_difference(expected: bytes, found: bytes) -> str | None:
    """Where two files differ in what they show; None where they do not.

    Raises InputError: what was found is damaged.
    """
    if expected.startswith(origins.SIGNATURE):
        return compare_pictures(expected, found)
    if expected[:4] == b"RIFF":
        return compare_sounds(expected, found)
    return compare_texts(*(content.decode("utf-8", "surrogateescape") for content in (expected, found)))


def compare_pictures(expected: bytes, found: bytes) -> str | None:
    from PIL import Image

    try:
        pictures = [Image.open(io.BytesIO(content)) for content in (expected, found)]
        modes = {picture.mode for picture in pictures}
        own, other = (np.asarray(picture if len(modes) == 1 else picture.convert("RGBA")) for picture in pictures)
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error on damaged data
        return f"the picture is damaged: {' '.join(str(error).split())}"
    if own.shape[:2] != other.shape[:2]:
        sizes = ["x".join(map(str, array.shape[:2])) for array in (own, other)]
        return f"height x width: expected {sizes[0]}, found {sizes[1]}"
    differs = (own != other).reshape(*own.shape[:2], -1).any(axis=-1)
    if not differs.any():
        return None
    y, x = np.argwhere(differs)[0].tolist()
    rest = f"{int(differs.sum()):,} of {differs.size:,} pixels differ"
    return f"pixel ({y}, {x}): expected {own[y, x].tolist()}, found {other[y, x].tolist()}; {rest}"


def compare_sounds(expected: bytes, found: bytes) -> str | None:
    import soundfile

    try:
        (own, rate), (other, other_rate) = (
            soundfile.read(io.BytesIO(content), dtype="int16", always_2d=True) for content in (expected, found)
        )
    except Exception as error:  # libsndfile's own errors, and those of a wrong header
        return f"the sound is damaged: {' '.join(str(error).split())}"
    if (rate, own.shape[1]) != (other_rate, other.shape[1]):
        return f"expected {own.shape[1]} x {rate} Hz, found {other.shape[1]} x {other_rate} Hz"
    return _first_of("audio sample", own.tolist(), other.tolist(), lambda value: str(value[0]))


def compare_texts(expected: str, found: str) -> str | None:
    return _first_of("character", expected, found, repr)


def _first_of(what: str, expected: Any, found: Any, shown: Any) -> str | None:
    """The first place where two sequences differ, or one of them ends."""
    pairs = zip(expected, found, strict=False)
    at = next((at for at, (own, other) in enumerate(pairs) if own != other), min(len(expected), len(found)))
    if at == len(expected) == len(found):
        return None
    own, other = (shown(sequence[at]) if at < len(sequence) else "the end" for sequence in (expected, found))
    return f"{what} {at}: expected {own}, found {other}"
