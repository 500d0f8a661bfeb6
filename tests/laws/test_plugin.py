"""Modalities from outside the package pass every law, and what is wrong with those that do not is said."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from armm import modality as modality_module
from armm.errors import InputError
from armm.generation import generate
from armm.heads import Categorical, CategoricalHead, Head, HeadConfig, Unit
from armm.modalities import Audio, Image, Label, Text
from armm.modality import Modality, discover
from armm.sequence import Segment
from armm.testing import LawBroken, check_class_path, check_modality, check_round_trip, run_checks, tiny_model
from armm.testing.models import Letters

PLUGIN = Path(__file__).resolve().parents[1] / "plugin"
LAWS = [
    "round trip",
    "normalised",
    "causal",
    "two views agree",
    "same seed, same sample",
    "the sampler samples",
]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], type[Modality]]]:
    """Modalities of the plug-in by entry-point name, as if it were installed."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    points = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    found = [EntryPoint(name, value, group) for group, own in points.items() for name, value in own.items()]
    monkeypatch.setattr(modality_module, "entry_points", lambda group: [p for p in found if p.group == group])
    yield lambda name: discover()[name]
    for name in [name for name in sys.modules if name.partition(".")[0] == "armm_plugin"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["protein", "notes"])
def test_plug_in_passes_every_law(name: str, plugin: Callable[[str], type[Modality]]) -> None:
    """Found by its entry point, with its default embedder and head, one symbol per unit and several."""
    assert [*run_checks(plugin(name)())] == [(law, None) for law in LAWS]


def test_plug_in_is_short(plugin: Callable[[str], type[Modality]]) -> None:
    """A residue alphabet or a note event takes about ten lines of code."""
    for name, most in (("protein", 14), ("notes", 20)):
        module = sys.modules[plugin(name).__module__]
        lines = Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()
        body = lines[next(i for i, line in enumerate(lines) if line.startswith("@dataclass")) :]
        assert len([line for line in body if line.strip()]) <= most


def test_plug_in_goes_into_a_model_with_modalities_of_the_package(plugin: Callable[[str], type[Modality]]) -> None:
    """The core does not change: a protein and its class in one model, the protein generated and read back."""
    protein = plugin("protein")()
    check_round_trip(protein, ["MKV", "ACDEFGHIKLMNPQRSTVWYX"])
    model = tiny_model({"label": Label(3), "protein": protein}, layout=["label", "protein"])
    prompts = [[model.modalities["label"].encode(c)] for c in (2, 0)]
    samples = list(generate(model, prompts, n=20, seed=1, max_symbols=20))
    assert all(model.modalities["label"].decode(sample.document[0]) == (2, 0)[sample.prompt] for sample in samples)
    texts = [protein.decode(sample.document[1]) for sample in samples]
    assert len(texts) == 40
    assert len(set(filter(None, texts))) > 4
    for text, sample in zip(texts, samples, strict=True):
        assert not text or torch.equal(protein.encode(text).symbols, sample.document[1].symbols)


# ----------------------------------------------------------- what checks say


@dataclass(frozen=True)
class Leaky(HeadConfig):
    """Softmax heads of which one makes probabilities that sum to more than one."""

    def build(self, width: int, unit: Unit) -> Head:
        return LeakyHead(width, unit.vocab, Categorical())


class LeakyHead(CategoricalHead):
    def log_prob(self, context: Tensor, symbols: Tensor, known: Tensor, header: Tensor) -> Tensor:
        return super().log_prob(context, symbols, known, header) + 0.01 * known


@dataclass(frozen=True)
class Crashing(Letters):
    def decode(self, segment: Segment) -> str:
        return super().decode(segment) if segment.length < 2 else str({}["nothing"])


def test_verdict_names_law_model_and_place() -> None:
    @dataclass(frozen=True)
    class LeakyLetters(Letters):
        head: HeadConfig | None = Leaky()

    verdicts = dict(run_checks(LeakyLetters(), ["abc"]))
    assert list(verdicts) == LAWS
    faulty = {law for law, fault in verdicts.items() if fault is not None}
    assert faulty == {"normalised", "two views agree", "the sampler samples"}
    assert (verdicts["normalised"] or "").startswith("with a transformer: what may follow [0] (payload of 'letters')")


def test_error_in_a_plug_in_is_a_verdict_that_names_its_line() -> None:
    fault = next(run_checks(Crashing())).fault
    assert fault is not None and "KeyError: 'nothing'" in fault
    with pytest.raises(LawBroken, match="KeyError"):
        check_modality(Crashing())

    @dataclass(frozen=True)
    class NoModule(Letters):
        def build_embedder(self, width: int) -> Any:
            raise TypeError("no such thing")

    fault = list(islice(run_checks(NoModule()), 2))[1].fault
    assert fault is not None and fault.startswith("TypeError: no such thing (test_plugin.py, line ")


def test_given_data_is_held_to_its_tolerance() -> None:
    audio = Audio(frame=4, levels=16)
    raws = [torch.linspace(-1, 1, 9).numpy()]
    assert next(run_checks(audio, raws, tolerance=0.2)).fault is None
    assert next(run_checks(audio, raws, tolerance=0.001)).fault is not None


@pytest.mark.parametrize(
    "modality",
    [Text("bpe", vocab_size=260), Image(max_size=(2, 4), levels=3, block=(1, 2)), Audio(frame=4)],
    ids=["bpe", "image", "audio"],
)
def test_modality_of_the_package_passes_every_law(modality: Modality) -> None:
    """One that learns its vocabulary is fitted on a sample first."""
    assert [*run_checks(modality)] == [(law, None) for law in LAWS]


def test_modality_that_cannot_be_fitted_is_refused() -> None:
    @dataclass(frozen=True)
    class Unfitted(Letters):
        @property
        def vocab(self) -> int:  # type: ignore[override]
            raise InputError("letters: no alphabet yet")

    with pytest.raises(InputError, match=r"no alphabet yet; .*check_modality\(modality, raws\)"):
        next(run_checks(Unfitted()))


# ------------------------------------------------------------- by class path


def test_class_path_is_imported_from_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user who writes a plug-in has it: a package beside them, not installed."""
    monkeypatch.chdir(PLUGIN)
    path = list(sys.path)
    verdicts = check_class_path("armm_plugin.notes.Notes", {"levels": 2})
    assert next(verdicts) == ("round trip", None)
    assert sys.path == path
    assert import_module("armm_plugin.notes").Notes(levels=2).vocab == 2


def test_installed_modality_is_checked_by_its_name() -> None:
    assert next(check_class_path("label", {"n_classes": 2})) == ("round trip", None)


BAD_PATHS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such package": ("armn.modalities.Text", {}, "no module 'armn'.*did you mean 'armm'"),
    "no such module": ("armm.modalities.txt.Text", {}, "no module 'armm.modalities.txt'.*did you mean 'text'"),
    "no such class": ("armm.modalities.text.Txet", {}, "no 'Txet'; did you mean 'Text'"),
    "no modality": ("armm.heads.CausalConv", {}, "not a Modality"),
    "no class": ("armm.modalities.text.PIECE", {}, "not a Modality"),
    "a bare name": ("txt", {}, "'txt' is neither an installed modality .*did you mean 'text'"),
    "no such argument": ("armm.modalities.Text", {"kinds": "bytes"}, "takes no 'kinds'; did you mean 'kind'"),
    "a missing argument": ("armm.modalities.Text", {}, "needs kind"),
    "a wrong value": ("armm.modalities.Text", {"kind": "words"}, "expected bytes, chars or bpe"),
    "an abstract class": ("armm.modality.Modality", {}, "is abstract; name a class"),
}


@pytest.mark.parametrize("name", BAD_PATHS)
def test_wrong_class_path_is_refused_in_one_line(name: str) -> None:
    path, init, message = BAD_PATHS[name]
    with pytest.raises(InputError, match=message) as refused:
        next(check_class_path(path, init))
    assert "\n" not in str(refused.value)


def test_module_that_cannot_be_imported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_written.py").write_text("import numpy\nclass Half(\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="SyntaxError") as refused:
        next(check_class_path("half_written.Half", {}))
    assert "\n" not in str(refused.value)
