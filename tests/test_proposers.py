"""Proposers: what they guess, that guessing changes nothing but the number of calls, and when they rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from laws.cases import CASES
from tiny_modalities import Letters, hash_parameters, segment_of

from armm.backbones import Transformer
from armm.errors import InputError
from armm.generation import Draft, FixedPoint, Hold, NGram, Proposer, Temperature, UnitAbove, generate
from armm.generation.draw import Drawer
from armm.generation.engine import Engine
from armm.generation.exact import self_test
from armm.generation.proposers import Pace, UnitPace, View
from armm.heads import CausalConv, GatedPixelCNN, HeadConfig
from armm.modalities import Image, Text
from armm.model import AutoregressiveModel
from armm.state import State


def build(width: int = 8, seed: float = 1.0, **modalities: Any) -> AutoregressiveModel:
    model = AutoregressiveModel(modalities, Transformer(width=width, n_layers=1, n_heads=2), list(modalities))
    hash_parameters(model, seed)
    return model.eval()


@pytest.fixture(scope="module")
def text() -> AutoregressiveModel:
    return build(text=Text(kind="bytes"))


@pytest.fixture(scope="module")
def image() -> AutoregressiveModel:
    head = CausalConv(channels=4, dilations=(1, 2), halo=1, halo_layers=0)
    return build(image=Image(size=(6, 8), levels=2, head=head))


def view(model: AutoregressiveModel, stream: Sequence[int]) -> View:
    cursor = model.grammar.start()
    for symbol in stream:
        model.grammar.push(cursor, symbol)
    return View(0, 0, stream, cursor, model.grammar, Drawer(0, [], torch.device("cpu")))


# --------------------------------------------------------------------------- guesses


@pytest.mark.parametrize(
    ("stream", "n", "expected"),
    [
        ([1, 2, 3, 4, 9, 1, 2, 3], 2, [4, 9]),  # the last three were followed by this
        ([5, 1, 2, 7, 0, 1, 2, 8, 3, 1, 2], 1, [8]),  # of several places the latest
        ([1, 2, 1, 2], 5, [1, 2, 1, 2, 1]),  # what repeats goes on
        ([1, 2, 3], 4, []),
        ([4], 4, []),
        ([], 4, []),
    ],
)
def test_ngram_looks_up_what_followed(
    stream: list[int], n: int, expected: list[int], text: AutoregressiveModel
) -> None:
    assert NGram().propose(view(text, stream), n) == expected


def test_rows_are_guessed_from_the_row_above(image: AutoregressiveModel) -> None:
    first = [0, 1, 0, 0, 1, 1, 0, 1]
    assert UnitAbove().propose(view(image, first), 8) == first
    assert UnitAbove().propose(view(image, [*first, 1, 1]), 6) == first[2:]
    assert UnitAbove().propose(view(image, first[:3]), 5) == [0] * 5  # there is none: hold
    assert Hold().propose(view(image, first), 3) == [1] * 3 and FixedPoint().propose(view(image, []), 2) == [0, 0]


def test_pixels_are_held_with_all_their_channels() -> None:
    model = build(image=Image(size=(2, 4), channels=3, levels=5))
    assert Hold().propose(view(model, [1, 2, 3]), 7) == [1, 2, 3, 1, 2, 3, 1]


# --------------------------------------------------------------------------- samples


@pytest.mark.parametrize("proposer", [NGram(least=1), FixedPoint(), UnitAbove(), Hold()], ids=repr)
@pytest.mark.parametrize("case", ["text bytes", "image rows", "audio"])
@pytest.mark.parametrize("filters", [[], [Temperature(0)]], ids=["sampled", "greedy"])
def test_guessing_changes_no_sample(proposer: Proposer, case: str, filters: list[Any]) -> None:
    """Bitwise, with every row at its own place; the law tries the other cases."""
    model = CASES[case].model()
    options: dict[str, Any] = {"n": 5, "seed": 3, "filters": filters, "max_symbols": 60, "batch_size": 3}
    plain = {s.index: s for s in generate(model, **options)}
    for sample in generate(model, proposer=proposer, **options):
        assert sample.symbols == plain[sample.index].symbols and sample.stop == plain[sample.index].stop
        assert sample.log_probs == pytest.approx(plain[sample.index].log_probs, abs=1e-4)


def calls(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Records calls of the state's methods."""
    made: list[str] = []

    def watch(name: str, method: Any) -> None:
        def call(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            return method(*arguments, **options)

        monkeypatch.setattr(State, name, call)

    for name in names:
        watch(name, getattr(State, name))
    return made


def test_a_draft_that_is_the_model_is_always_right(text: AutoregressiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guesses have the sample's own noise, so they all come true: a call for every seven symbols."""
    (plain,) = generate(text, seed=5, max_symbols=56)
    made = calls(monkeypatch, "verify")
    (found,) = generate(text, seed=5, max_symbols=56, proposer=Draft(text, longest=6))
    assert found.symbols == plain.symbols
    assert len(made) <= 56 / 7 + 3


def test_a_draft_that_is_another_model_changes_nothing(text: AutoregressiveModel) -> None:
    draft = build(width=16, seed=2.0, text=Text(kind="bytes"))
    options: dict[str, Any] = {"n": 3, "seed": 5, "filters": [Temperature(0.7)], "max_symbols": 40}
    plain = {s.index: s.symbols for s in generate(text, **options)}
    assert {s.index: s.symbols for s in generate(text, proposer=Draft(draft), **options)} == plain


def test_a_draft_with_a_shorter_context_stops_guessing(text: AutoregressiveModel) -> None:
    short = AutoregressiveModel({"text": Text(kind="bytes")}, Transformer(width=8, n_layers=1, n_heads=2), ["text"], 8)
    hash_parameters(short, 3.0)
    (plain,) = generate(text, seed=5, max_symbols=30)
    (found,) = generate(text, seed=5, max_symbols=30, proposer=Draft(short.eval()))
    assert found.symbols == plain.symbols


def test_a_draft_of_another_vocabulary_is_refused(text: AutoregressiveModel) -> None:
    with pytest.raises(InputError, match="another vocabulary"):
        generate(text, proposer=Draft(build(letters=Letters())), max_symbols=4)


def test_a_fixed_point_takes_few_passes(image: AutoregressiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a pass for every place and one to see that nothing changes; fewer where places are nearly independent."""
    monkeypatch.setattr(UnitPace, "choose", lambda self: setattr(self, "guessing", True))
    engines: list[Engine] = []
    original = Engine.run
    monkeypatch.setattr(Engine, "run", lambda engine: engines.append(engine) or original(engine))
    plain = {s.index: s.symbols for s in generate(image, n=4, seed=1)}
    found = {s.index: s.symbols for s in generate(image, n=4, seed=1, proposer=UnitAbove())}
    assert found == plain
    passes = engines[-1].units.pace.passes
    assert len(passes) == 4 * 6 and max(passes) <= 9 and min(passes) >= 1


@pytest.mark.parametrize(
    "head", [CausalConv(channels=4, dilations=(1,), halo=1), GatedPixelCNN(channels=8, n_layers=1)]
)
def test_a_fixed_point_waits_for_no_channel(head: HeadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels that know nothing of one another are right at once, whatever their channels know of one another."""
    monkeypatch.setattr(UnitPace, "choose", lambda self: setattr(self, "guessing", True) or True)
    passes: list[int] = []
    monkeypatch.setattr("armm.generation.units.UnitPace", lambda: UnitPace(passes=passes))
    model = build(image=Image(size=(3, 4), channels=3, levels=6, head=head))
    for name, parameter in model.heads["image"].named_parameters():
        if "distribution" not in name:
            parameter.data.zero_()  # features are the same everywhere
    plain = {s.index: s.symbols for s in generate(model, n=3, seed=1)}
    assert {s.index: s.symbols for s in generate(model, n=3, seed=1, proposer=FixedPoint())} == plain
    assert len(passes) == 3 * 3 and set(passes) == {2}  # and one to see that nothing changes


# ------------------------------------------------------------------------------ pace


def test_more_is_asked_after_right_guesses_and_less_after_wrong_ones() -> None:
    pace = Pace()
    lengths = []
    for right in (4, 8, 3, 0):
        n = pace.length(16)
        lengths.append(n)
        pace.record(n, min(right, n))
    assert lengths == [4, 8, 16, 4] and pace.length(16) == 2


def test_a_proposer_that_is_never_right_rests() -> None:
    pace = Pace()
    asked = []
    for _ in range(40):
        n = pace.length(16)
        asked.append(n)
        if n:
            pace.record(n, 0)
    assert asked.count(0) > 20 and asked[:3] == [4, 2, 2] and any(asked[20:])


def test_units_are_guessed_only_where_that_is_faster() -> None:
    pace = UnitPace()
    for way, seconds in ((True, 2.0), (False, 1.0)):
        assert pace.choose() is way
        pace.seconds[way] = seconds
    assert not pace.choose()
    pace.seconds[True] = 0.5
    assert pace.choose()


# --------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("case", ["text bytes", "image rows", "audio", "free documents"])
def test_the_self_test_sees_numbers_that_depend_on_other_rows(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes here, and not where the last bit of a logit depends on how many rows there are."""
    model = CASES[case].model()
    assert self_test(model)
    original = State.logits

    def disturbed(state: State, rows: Sequence[int]) -> torch.Tensor:
        logits = original(state, rows)
        return logits if state.n_rows < 10 else torch.nextafter(logits, torch.tensor(float("inf")))

    monkeypatch.setattr(State, "logits", disturbed)
    assert not self_test(model)


def test_an_exact_sample_says_so(text: AutoregressiveModel) -> None:
    assert [next(generate(text, exact=exact, max_symbols=3)).exact for exact in (True, False)] == [True, False]


def test_sixteen_rows_or_one_the_bits_are_the_same() -> None:
    """The point of it all: logits of a row alone and in a large batch, bit by bit, through a whole document."""
    model = build(width=64, letters=Letters(ended=False))
    symbols = [[(7 * t + row) % 6 for t in range(30)] for row in range(20)]
    together, alone = model.state(20, exact=True), model.state(1, exact=True)
    a, b = together.extend([[]] * 20), alone.extend([[]])
    for t in range(30):
        assert torch.equal(a[13], b[0])
        a, b = together.extend([own[t : t + 1] for own in symbols]), alone.extend([symbols[13][t : t + 1]])
    assert alone.document(0)[0].length == 30 and segment_of("letters", symbols[13], 1).length == 30
