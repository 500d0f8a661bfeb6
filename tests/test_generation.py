"""The sampling engine: what a sample depends on, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from laws.cases import CASES
from tiny_modalities import Clip, Letters, Picture, hash_parameters, hash_symbols, segment_of

from armm.backbones import Transformer
from armm.errors import InputError
from armm.generation import Filter, FixedPoint, Sample, Temperature, TopK, TopP, engine, generate
from armm.generation.noise import gumbel
from armm.generation.requests import ends_by_itself, start
from armm.heads import CausalConv
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.sequence import Document, Segment
from armm.state import State

INF = float("inf")


def build(
    *modalities: Modality, layout: Sequence[str] | None = None, context: int | None = None
) -> AutoregressiveModel:
    backbone = Transformer(width=8, n_layers=1, n_heads=2)
    model = AutoregressiveModel({m.name: m for m in modalities}, backbone, layout, context)
    hash_parameters(model)
    with torch.no_grad():  # documents of some length
        for decision in model.decisions.values():
            decision.bias[0] += 2  # type: ignore[union-attr]
        for end in [value for name, value in model.control_logits.items() if name == "end"]:
            end[-1] -= 2
    return model.eval()


@pytest.fixture(scope="module")
def free() -> AutoregressiveModel:
    """Free documents of letters, pictures and clips."""
    return build(Letters(max_units=6), Picture(size=(2, 4)), Clip(max_units=3), context=40)


@pytest.fixture(scope="module")
def letters() -> AutoregressiveModel:
    return build(Letters(max_units=40), layout=["letters"])


@pytest.fixture(scope="module")
def stream() -> AutoregressiveModel:
    """Letters without an end."""
    return build(Letters(ended=False), layout=["letters"])


def text(*symbols: int) -> Segment:
    return segment_of("letters", symbols, 1)


def streams(samples: Any) -> list[list[int]]:
    """In the order of their prompts and numbers, not of their finishing."""
    return [sample.symbols for sample in sorted(samples, key=lambda s: (s.prompt, s.index))]


# --------------------------------------------------------------------------- engine


def slow_sample(model: AutoregressiveModel, k: int, seed: int, filters: Sequence[Filter] = ()) -> list[int]:
    """The definition: one document alone, one symbol at a time, its noise looked up."""
    state = model.state(1)
    logits = state.extend([[]])
    while not state.done[0]:
        for keep in filters:
            logits = keep(logits, [])
        at = torch.tensor([k]), torch.tensor([len(state)])
        symbol = int((logits + gumbel(seed, *at, logits.shape[-1])).argmax())
        logits = state.extend([[symbol]])
    return state.streams[0]


@pytest.mark.parametrize("filters", [(), (Temperature(0.7), TopK(3)), (TopP(0.8),)], ids=["none", "t and k", "p"])
def test_samples_are_those_of_the_definition(free: AutoregressiveModel, filters: Sequence[Filter]) -> None:
    found = streams(generate(free, n=12, seed=3, filters=filters, batch_size=5))
    assert found == [slow_sample(free, k, 3, filters) for k in range(12)]
    assert len({tuple(symbols) for symbols in found}) > 6


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size_changes_nothing(free: AutoregressiveModel, batch_size: int) -> None:
    expected = sorted((s.index, s.symbols, s.stop) for s in generate(free, n=10, seed=1, batch_size=4))
    found = sorted((s.index, s.symbols, s.stop) for s in generate(free, n=10, seed=1, batch_size=batch_size))
    assert found == expected and [index for index, _, _ in found] == list(range(10))


def test_one_sample_can_be_made_again_alone(free: AutoregressiveModel) -> None:
    whole = streams(generate(free, n=10, seed=1))
    (again,) = generate(free, seed=1, samples=[(0, 7)])
    assert again.index == 7 and again.symbols == whole[7]
    some = streams(generate(free, seed=1, samples=[(0, 9), (0, 0), (0, 4)]))
    assert some == [whole[k] for k in (0, 4, 9)]


def test_more_samples_begin_with_the_same(free: AutoregressiveModel) -> None:
    """Sample k of 8 is sample k of 64."""
    assert streams(generate(free, n=20, seed=1))[:8] == streams(generate(free, n=8, seed=1))


def test_seeds_and_samples_differ(stream: AutoregressiveModel) -> None:
    found = [tuple(s.symbols) for seed in range(3) for s in generate(stream, n=5, seed=seed, max_symbols=20)]
    assert len(set(found)) == 15


def test_greedy_takes_the_most_probable(letters: AutoregressiveModel) -> None:
    (sample,) = generate(letters, n=1, filters=[Temperature(0.0)])
    state = letters.state(1)
    logits = state.extend([[]])
    for symbol in sample.symbols:
        assert symbol == int(logits.argmax())
        logits = state.extend([[symbol]])


def test_log_probs_are_those_of_the_model(free: AutoregressiveModel) -> None:
    """Whatever the filters and the plan do: the numbers beside a sample are the model's own."""
    prompt = [text(1, 2)]
    plan = ["letters", "picture"]
    for sample in generate(free, n=4, seed=2, prompts=[prompt], plan=plan, filters=[Temperature(0.3), TopK(2)]):
        nats = free.stream_log_prob(sample.document).detach()
        assert len(nats) == len(sample.symbols)
        torch.testing.assert_close(torch.tensor(sample.log_probs), nats[sample.n_prompt :], rtol=1e-4, atol=1e-5)


def test_samples_come_as_soon_as_they_are_finished(letters: AutoregressiveModel) -> None:
    """Whoever stops a long batch keeps what was finished before."""
    samples = list(generate(letters, n=6, seed=1))
    lengths = [len(s.symbols) for s in samples]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_finished_rows_are_replaced_at_once(letters: AutoregressiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch does not wait for its longest row: as many steps as two rows take that share the work."""
    steps = []
    original = State.append

    def append(state: State, added: Any, **options: bool) -> None:
        steps.append(1)
        original(state, added, **options)

    monkeypatch.setattr(State, "append", append)
    lengths = [len(s.log_probs) for s in generate(letters, n=12, seed=1, exact=False)]
    steps.clear()
    list(generate(letters, n=12, seed=1, batch_size=2, exact=False))
    assert sum(lengths) / 2 <= len(steps) < sum(lengths) / 2 + max(lengths) + 4


def test_the_model_trains_on_as_before() -> None:
    """Dropout is off while a step is sampled, and on whenever the caller has the word; several may sample at once."""
    modalities = {"letters": Letters(max_units=40)}
    model = AutoregressiveModel(modalities, Transformer(width=8, n_layers=1, n_heads=2, dropout=0.5), ["letters"])
    hash_parameters(model)
    model.eval()
    expected = streams(generate(model, n=6, seed=1))
    model.train()
    first, second = generate(model, n=6, seed=1), generate(model, n=6, seed=1)
    found = [next(first)]
    assert model.training
    other = [next(second)]
    found += list(first)
    other += list(second)
    assert model.training and streams(found) == expected == streams(other)


# -------------------------------------------------------------------------- prompts


def test_prompts_are_kept_exactly(free: AutoregressiveModel, letters: AutoregressiveModel) -> None:
    for sample in generate(letters, n=5, prompts=[[text(4, 0, 5)]]):
        assert sample.document[0].flat().tolist()[:3] == [4, 0, 5]
        assert sample.symbols[: sample.n_prompt] == [0, 4, 0, 0, 0, 5]  # a decision before each: more follow
    picture = Segment("picture", torch.tensor([[1, 2, 3, 4]]), None, (2, 1))
    clip = segment_of("clip", [1, 2, 3, 4], 3)
    for beginning in (picture, clip):
        for sample in generate(free, n=5, prompts=[[text(3), beginning]]):
            own = sample.document[1]
            assert sample.document[0].flat().tolist() == [3]
            assert own.modality == beginning.modality
            assert own.flat().tolist()[: beginning.length] == beginning.flat().tolist()


def test_a_sample_does_not_depend_on_other_prompts(letters: AutoregressiveModel) -> None:
    """Of a prompt and a number, beside longer and shorter prompts or alone; n samples share one reading."""
    prompts: list[Document] = [[text(1)], [text(2, 3, 4)], []]
    beginnings = [[0, 1], [0, 2, 0, 3, 0, 4], []]
    samples = list(generate(letters, prompts, n=3, batch_size=4))
    assert sorted((s.prompt, s.index) for s in samples) == [(p, k) for p in range(3) for k in range(3)]
    for sample in samples:
        assert sample.symbols[: sample.n_prompt] == beginnings[sample.prompt]
        (alone,) = generate(letters, [prompts[sample.prompt]], samples=[(0, sample.index)])
        assert alone.symbols == sample.symbols and alone.exact and sample.exact


def test_a_prompt_is_read_once(letters: AutoregressiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = State.append

    def append(state: State, added: Any, **options: bool) -> None:
        read.extend(own for own in added if len(own) > 1)
        original(state, added, **options)

    monkeypatch.setattr(State, "append", append)
    list(generate(letters, [[text(1, 2)]], n=5, exact=False))
    assert read == [[0, 1, 0, 2]]


def test_prompts_that_come_up_are_read_in_one_call(
    letters: AutoregressiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as go side by side; the longest does not wait for all the others."""
    calls = []
    original = State.append

    def append(state: State, added: Any, **options: bool) -> None:
        if any(len(own) > 1 for own in added):
            calls.append([len(own) for own in added])
        original(state, added, **options)

    monkeypatch.setattr(State, "append", append)
    prompts: list[Document] = [[text(*[1] * n)] for n in (1, 2, 3, 4, 5)]
    list(generate(letters, prompts, n=2, batch_size=3, exact=False))
    assert calls == [[2, 4, 6], [8, 10]]
    calls.clear()
    monkeypatch.setattr(engine, "READ_TOGETHER", 12)
    list(generate(letters, prompts, n=2, batch_size=3, exact=False))
    assert calls == [[2, 4], [6], [8], [10]]


def test_a_complete_prompt_is_followed_by_something_else(free: AutoregressiveModel) -> None:
    whole = [text(1, 2, 3)]
    for sample in generate(free, n=6, prompts=[whole], prompt_complete=True):
        assert sample.document[0].flat().tolist() == [1, 2, 3]
    longer = [s.document[0].length for s in generate(free, n=6, prompts=[whole])]
    assert max(longer) > 3


def test_a_prompt_that_is_all_there_is_needs_no_symbols() -> None:
    model = build(Picture(size=(2, 4)), layout=["picture"])
    picture = Segment("picture", torch.tensor([[1, 2, 3, 4], [0, 1, 2, 3]]), None, (2, 1))
    (sample,) = generate(model, n=1, prompts=[[picture]], prompt_complete=True)
    assert (sample.stop, sample.log_probs, sample.symbols) == ("end", [], [1, 2, 3, 4, 0, 1, 2, 3])


# ------------------------------------------------------------------- ends and plans


def test_stops(letters: AutoregressiveModel, stream: AutoregressiveModel) -> None:
    """`end`: the document says so; `length`: as many symbols as asked for; `context`: no more units fit."""
    assert {s.stop for s in generate(letters, n=8, seed=1)} == {"end"}
    for sample in generate(stream, n=3, max_symbols=11, prompts=[[text(1, 2)]]):
        assert (sample.stop, len(sample.log_probs), len(sample.symbols)) == ("length", 11, 13)
    short = build(Letters(ended=False), layout=["letters"], context=9)
    for sample in generate(short, n=3, prompts=[[text(1, 2)]]):
        assert (sample.stop, sample.document[0].length) == ("context", 9)


def test_length_counts_new_symbols_only_and_ends_may_come_first(letters: AutoregressiveModel) -> None:
    samples: list[Sample] = list(generate(letters, n=20, max_symbols=6, prompts=[[text(1)]]))
    assert {s.stop for s in samples} == {"end", "length"}
    assert all(len(s.log_probs) == 6 if s.stop == "length" else len(s.log_probs) <= 6 for s in samples)


def test_a_plan_decides_what_comes(free: AutoregressiveModel) -> None:
    plan = ["picture", "letters", "clip", "letters"]
    for sample in generate(free, n=5, plan=plan):
        assert [segment.modality for segment in sample.document] == plan
        assert sample.stop == "end"
    for sample in generate(
        free, n=5, plan=plan, prompts=[[Segment("picture", torch.tensor([[1, 2, 3, 4]]), None, (2, 1))]]
    ):
        assert [segment.modality for segment in sample.document] == plan


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": -3}, "n is -3"),
        ({"samples": []}, "samples is empty"),
        ({"samples": [(0, -1)]}, r"samples names \(0, -1\)"),
        ({"samples": [(1, 0)]}, r"samples names \(1, 0\)"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"without": [text(1)]}, "set guidance"),
        ({"stops": ["x"]}, "stops ends texts"),
        ({"stops": [""]}, "empty string"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_symbols": 0}, "max_symbols is 0"),
        ({"plan": ["lettres"]}, "lettres.*did you mean 'letters'"),
        ({"plan": ["clip"], "prompts": [[text(1)]]}, "the prompt is letters, the plan clip"),
        ({"plan": [], "prompts": [[text(1)]]}, "the prompt is letters"),
        ({"prompts": [[segment_of("words", [1], 1)]]}, "the prompt is words"),
        ({"prompts": [[text(*[1] * 6)]]}, "6 units of 'letters' and no more fit"),
    ],
    ids=str,
)
def test_mistakes_show_at_the_call(free: AutoregressiveModel, options: dict[str, Any], words: str) -> None:
    """Not when the first sample is taken, which may be after a folder was made."""
    with pytest.raises(InputError, match=words) as error:
        generate(free, **options)
    assert "\n" not in str(error.value)


def test_documents_without_an_end_need_a_length(stream: AutoregressiveModel) -> None:
    assert not ends_by_itself(stream)
    with pytest.raises(InputError, match="set max_symbols"):
        generate(stream, n=1)


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    model = build(Letters(ended=False), layout=["letters"], context=4)
    assert start(model, [text(1, 2, 3)]).read == [1, 2, 3]
    with pytest.raises(InputError, match="4 units, the model's context is 4"):
        generate(model, n=1, prompts=[[text(1, 2, 3, 4)]])


def test_prompts_and_plans_that_do_not_fit_the_layout_are_refused(letters: AutoregressiveModel) -> None:
    with pytest.raises(InputError, match="the prompt is clip"):
        generate(letters, n=1, prompts=[[segment_of("clip", [1], 3)]])
    with pytest.raises(InputError, match="always letters"):
        generate(letters, n=1, plan=["letters"])
    with pytest.raises(InputError, match="outside"):
        list(generate(letters, n=1, prompts=[[text(99)]]))


# ------------------------------------------------------------------ holes and guidance


@pytest.mark.parametrize("proposer", [None, FixedPoint()], ids=["plain", "guessed"])
@pytest.mark.parametrize(
    "picture",
    [Picture(size=(4, 4)), Picture(size=(4, 2), block=(1, 2), symbol_channels=2)],
    ids=["places", "halves of places"],
)
def test_holes_are_filled_and_the_rest_is_kept(picture: Picture, proposer: FixedPoint | None) -> None:
    """Any fixed symbols of an image; with nothing fixed it is the sample itself."""
    model = build(picture, layout=["picture"])
    vocab = model.modalities["picture"].vocab
    drawn = [s.symbols for s in generate(model, n=3, seed=6)]
    unknown = [Segment("picture", torch.full((4, 4), vocab), None, (4, 1))]
    assert [s.symbols for s in generate(model, [unknown], n=3, seed=6, proposer=proposer)] == drawn
    symbols = torch.tensor(hash_symbols(16, vocab)).view(4, 4)
    holes = torch.tensor([1, 0, 0, 1] * 4).view(4, 4).bool()
    prompt = [Segment("picture", symbols.masked_fill(holes, vocab), None, (4, 1))]
    found = list(generate(model, [prompt], n=4, seed=6, proposer=proposer))
    for sample in found:
        result = torch.tensor(sample.symbols).view(4, 4)
        assert torch.equal(result[~holes], symbols[~holes]) and int(result.max()) < vocab
        assert (sample.n_prompt, len(sample.log_probs)) == (0, 16)
    assert len({tuple(s.symbols) for s in found}) == 4
    with torch.no_grad():
        nats = model.stream_log_prob(found[0].document)
    torch.testing.assert_close(torch.tensor(found[0].log_probs), nats, rtol=1e-4, atol=1e-5)


def test_holes_of_a_text_are_filled_and_it_goes_on(letters: AutoregressiveModel) -> None:
    vocab = letters.modalities["letters"].vocab
    prompt = [text(3, vocab, 2, vocab, 1)]
    for sample in generate(letters, [prompt], n=4, seed=2, max_symbols=12):
        found = sample.document[0].flat().tolist()
        assert found[0] == 3 and found[2] == 2 and found[4] == 1 and max(found) < vocab


def test_guidance_of_one_is_none_and_more_goes_further(free: AutoregressiveModel) -> None:
    """The mixture is that of the paper, computed here from two states by hand."""
    prompt = [text(1, 2, 3)]
    plain = streams(generate(free, [prompt], n=3, seed=4, prompt_complete=True))
    options: dict[str, Any] = {"prompt_complete": True, "without": [text(5)], "seed": 4}
    assert streams(generate(free, [prompt], n=3, guidance=1.0, **options)) == plain
    guided = list(generate(free, [prompt], n=3, guidance=2.5, **options))
    assert streams(guided) != plain
    for sample in guided:
        state = free.state(2)
        begins = [start(free, document, True).read for document in (prompt, [text(5)])]
        logits = state.extend(begins)
        for t, symbol in enumerate(sample.symbols[sample.n_prompt :], sample.n_prompt):
            with_it, without = logits.log_softmax(-1)
            mixed = (without + 2.5 * (with_it - without)).masked_fill(with_it == -INF, -INF)
            noise = gumbel(4, torch.tensor([sample.index]), torch.tensor([t]), len(mixed))
            assert int((mixed + noise[0]).argmax()) == symbol
            logits = state.extend([[symbol], [symbol]])


@pytest.mark.parametrize("begun", [True, False])
def test_guidance_away_from_an_unknown_condition(begun: bool) -> None:
    """Where the layout wants a label, its twin has the unknown one; where it does not, none."""
    model = build(Letters(ended=False), Picture(size=(4, 4)), layout=["picture", "letters"])
    symbols = torch.tensor(hash_symbols(16, 5)).view(4, 4)
    prompt = [Segment("picture", symbols, None, (4, 1)), *([text(1, 2)] if begun else [])]
    (sample,) = generate(model, [prompt], guidance=3.0, seed=1, max_symbols=5)
    vocab = model.modalities["picture"].vocab
    state = model.state(2)
    n = sample.n_prompt
    state.append([sample.symbols[:n], [vocab] * 16 + sample.symbols[16:n]], unknown=True)
    for t, symbol in enumerate(sample.symbols[n:], n):
        with_it, without = state.logits([0, 1]).log_softmax(-1)
        mixed = without + 3.0 * (with_it - without)
        assert int((mixed + gumbel(1, torch.tensor([0]), torch.tensor([t]), len(mixed))[0]).argmax()) == symbol
        state.append([[symbol], [symbol]])
    assert sample.symbols[:16] == symbols.flatten().tolist()


def test_twins_that_go_on_differently_are_refused(free: AutoregressiveModel) -> None:
    with pytest.raises(InputError, match="goes on as the prompt does"):
        generate(free, [[text(1)]], guidance=2.0, without=[segment_of("clip", [1, 2], 3)])


def test_twins_that_would_end_first_are_refused(letters: AutoregressiveModel) -> None:
    model = build(Letters(ended=False), layout=["letters"], context=12)
    with pytest.raises(InputError, match="longer than the prompt"):
        generate(model, [[text(1)]], guidance=2.0, without=[text(1, 2, 3)])
    with pytest.raises(InputError, match="goes on as the prompt does"):  # one has more room in its segment
        generate(letters, [[text(1)]], guidance=2.0, without=[text(1, 2, 3)])
    with pytest.raises(InputError, match="without has holes"):
        generate(letters, [[text(1)]], guidance=2.0, without=[text(letters.modalities["letters"].vocab)])


def test_log_probs_do_not_depend_on_other_rows_alphabets() -> None:
    """A sum over a padded alphabet is in another order than over a bare one, in the last bit."""
    model = CASES["free documents"].model("small")
    together = {s.index: s for s in generate(model, n=12, seed=3, max_symbols=40)}
    for sample in generate(model, n=12, seed=3, max_symbols=40, batch_size=1):
        assert sample.exact and sample.log_probs == together[sample.index].log_probs


@pytest.mark.parametrize("proposer", [None, FixedPoint()], ids=["plain", "guessed"])
def test_rows_at_different_places_of_their_units(proposer: Any) -> None:
    """A prompt that ends within a frame, beside frames that end early: as many symbols to go, from elsewhere."""
    model = build(Clip(vocab=5, unit_symbols=4), layout=["clip"])
    prompt = [segment_of("clip", [1, 2, 3, 4, 0, 1], 4)]
    alone = [s.symbols for k in range(20) for s in generate(model, [prompt], samples=[(0, k)])]
    assert streams(generate(model, [prompt], n=20, batch_size=3, proposer=proposer)) == alone


def test_compiled_rows_do_not_depend_on_holes_of_others() -> None:
    pytest.importorskip("numba", reason="the fast extra is not installed")
    model = build(Picture(size=(2, 4)), layout=["picture"])
    vocab = model.modalities["picture"].vocab
    holed = [Segment("picture", torch.tensor([[vocab] * 4, [1, 2, vocab, 0]]), None, (2, 1))]
    (alone,) = generate(model, [[]], seed=3, fast=True)
    together = {s.prompt: s for s in generate(model, [[], holed], seed=3, fast=True)}
    assert together[0].log_probs == alone.log_probs and together[0].symbols == alone.symbols


def test_a_temperature_of_one_modality_leaves_its_end_alone() -> None:
    """Greedy letters still end where they happen to; a greedy document is always the same."""
    model = build(Letters(vocab=9, max_units=40), layout=["letters"])
    own, all_greedy = (
        list(generate(model, n=12, filters=[keep], batch_size=5))
        for keep in (Temperature(0, "letters"), Temperature(0))
    )
    assert len({len(s.symbols) for s in own}) > 3 and len({tuple(s.symbols) for s in all_greedy}) == 1
    payloads = [s.symbols[1::2] for s in own]  # each after the decision that it comes
    longest = max(payloads, key=len)
    assert all(payload == longest[: len(payload)] for payload in payloads)


def test_compiled_symbols_have_the_temperature_of_their_modality() -> None:
    pytest.importorskip("numba", reason="the fast extra is not installed")
    audio = Clip(vocab=5, unit_symbols=4, head=CausalConv(channels=6, kernel=2, dilations=(1, 2)))
    model = build(audio, layout=["clip"])
    for filters in ([Temperature(0.5, "clip")], [Temperature(0, "clip")], [Temperature(3.0, "clip"), TopK(2, "clip")]):
        fast, plain = (streams(generate(model, n=9, filters=filters, fast=fast)) for fast in (True, False))
        assert fast == plain != streams(generate(model, n=9))
