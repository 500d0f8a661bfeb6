"""`armm consolidate RUN`: a bundle of a checkpoint, whether one process wrote it or a thousand did, on any machine."""

from __future__ import annotations

from pathlib import Path

from armm import bundle
from armm.commands.options import OptionParser
from armm.errors import InputError
from armm.training.bundling import model_of
from armm.training.checkpoints import DamagedError, Saved, check, newest
from armm.training.resuming import find_run, recipe_of


def run(arguments: list[str]) -> int:
    """Run `armm consolidate`.

    Raises InputError: there is no such run, or no checkpoint of it that is whole.
    """
    p = OptionParser("consolidate", "Make a bundle of a checkpoint, in parts or whole; no GPU is needed.")
    p.add_argument("place", type=Path, metavar="RUN", help="a run folder (its newest checkpoint) or a checkpoint")
    p.add_argument("--out", type=Path, help="folder of the bundle; model/ of the run by default")
    options = p.parse_args(arguments)
    saved, about = find(options.place)
    out = options.out or (saved.path.parent.parent / "model")
    model, kind = model_of(saved.path)
    about |= {"n_parameters": model.n_parameters, "steps": saved.step, "weights": kind}
    bundle.save(model, out, about)
    print(f"{saved.path}: step {saved.step:,}, {model.n_parameters:,} parameters, {kind}")
    print(f"bundle: {out}\nnext: armm generate {out} --n 16 --out samples/")
    return 0


def find(place: Path) -> tuple[Saved, dict[str, object]]:
    """The checkpoint that is meant, and what is known of its run.

    Raises InputError: there is none.
    """
    if place.suffix == ".ckpt":
        try:
            return check(place), {}
        except DamagedError as error:
            raise InputError(f"{place} is damaged: {error}; name another checkpoint, or the run") from error
    if not place.exists():
        raise InputError(f"{place} does not exist; name a run folder (armm list shows runs) or a checkpoint")
    folder = find_run(place)
    saved = newest(folder)
    if saved is None:
        raise InputError(f"{folder} has no checkpoint; its bundle, if it was trained to its end, is {folder / 'model'}")
    return saved, {"recipe": recipe_of(folder)}
