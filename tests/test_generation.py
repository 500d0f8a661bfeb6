"""Noise, filters and the sampling engine: what a sample depends on, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_modalities import Clip, Letters, Picture, hash_parameters, hash_symbols, segment_of
from torch import Tensor

from armm.backbones import Transformer
from armm.errors import InputError
from armm.generation import Filter, Sample, engine, generate, noise, temperature, top_k, top_p
from armm.generation.engine import ends_by_itself, prompt_stream
from armm.generation.noise import gumbel
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
    return [sample.symbols for sample in samples]


# ---------------------------------------------------------------------------- noise


def grid(seed: int = 0, n_samples: int = 64, n_positions: int = 64, vocab: int = 64) -> Tensor:
    """(n_samples, n_positions, vocab) uniform values behind the noise."""
    samples = torch.arange(n_samples)[:, None].expand(n_samples, n_positions)
    positions = torch.arange(n_positions).expand(n_samples, n_positions)
    return torch.exp(-torch.exp(-gumbel(seed, samples, positions, vocab).double()))


def test_noise_is_what_it_was() -> None:
    """A sample belongs to its seed for good: another value here would change every sample ever made."""
    values = gumbel(0, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), 4)
    expected = [
        [-0.7526282072067261, 1.1769095659255981, 2.7631402015686035, 0.5536748170852661],
        [-0.9324259161949158, -0.7089055776596069, -0.40486928820610046, -0.4549872577190399],
        [3.289226770401001, -1.286908507347107, -0.833004355430603, -0.14058513939380646],
    ]
    torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-6, atol=1e-6)
    far = gumbel(-1, torch.tensor([7]), torch.tensor([100_000]), 3)
    expected = [[-0.3356494605541229, 0.4264221489429474, 0.20537011325359344]]
    torch.testing.assert_close(far, torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("word", [0, -1, 1 << 62, -(1 << 63)])
def test_noise_is_finite_whatever_the_hash(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A uniform value of exactly 0 or 1 would be noise of -inf or inf: a symbol that always or never wins."""
    monkeypatch.setattr(noise, "mix", lambda x: torch.full_like(x, word))
    assert gumbel(0, torch.tensor([0]), torch.tensor([0]), 3).isfinite().all()


def test_noise_is_uniform() -> None:
    """Chi-square of 256 cells over 262,144 values: 255 degrees of freedom, mean 255, deviation 22.6."""
    counts = torch.histc(grid(), bins=256, min=0, max=1)
    expected = counts.sum() / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 255 - 4 * 22.6 < chi_square < 255 + 4 * 22.6


@pytest.mark.parametrize("axis", ["sample", "position", "value", "seed"])
@pytest.mark.parametrize("step", [1, 2, 16])
def test_neighbours_are_not_correlated(axis: str, step: int) -> None:
    """Of neighbouring seeds, samples, positions and values; 4 deviations of the correlation of so many pairs."""
    if axis == "seed":
        one, other = grid(seed=5), grid(seed=5 + step)
    else:
        where = ["sample", "position", "value"].index(axis)
        whole = grid()
        one, other = whole.narrow(where, 0, 64 - step), whole.narrow(where, step, 64 - step)
    correlation = float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])
    assert abs(correlation) < 4 / one.numel() ** 0.5


def test_samples_and_positions_do_not_swap() -> None:
    """Sample 3 at position 5 is not sample 5 at position 3."""
    whole = grid(vocab=1)[..., 0]
    assert not torch.equal(whole, whole.T)
    assert len(torch.unique(whole)) == whole.numel()


def test_noise_of_a_value_does_not_depend_on_the_alphabet_or_the_batch() -> None:
    """Keyed by the symbol's value: a larger alphabet, or other rows beside it, change nothing, bitwise."""
    samples, positions = torch.arange(10), torch.arange(10) * 3
    whole = gumbel(4, samples, positions, 300)
    assert torch.equal(whole[:, :7], gumbel(4, samples, positions, 7))
    for row in range(10):
        assert torch.equal(whole[row : row + 1], gumbel(4, samples[row : row + 1], positions[row : row + 1], 300))
    order = torch.tensor([3, 1, 2])
    assert torch.equal(whole[order], gumbel(4, samples[order], positions[order], 300))


def test_blocks_are_the_noise_itself() -> None:
    """Computed ahead for speed: equal to position by position, also when rows jump or alphabets change."""
    block = engine.NoiseBlock(2, [4, 9], torch.device("cpu"))
    for positions, vocab in [
        ([0, 3], 5),
        ([1, 4], 5),
        ([2, 5], 5),
        ([3, 6], 2),
        ([4, 7], 5),
        ([40, 7], 5),
        ([41, 8], 5),
    ]:
        expected = gumbel(2, torch.tensor([4, 9]), torch.tensor(positions), vocab)
        assert torch.equal(block.next(positions, vocab), expected)


# -------------------------------------------------------------------------- filters

ROW = torch.tensor([[1.0, 3.0, 2.0, 3.0, -INF]])


def allowed(filtered: Tensor) -> list[int]:
    return (filtered[0] > -INF).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (top_k(1), [1, 3]),  # equals of the k-th stay
        (top_k(2), [1, 3]),
        (top_k(3), [1, 2, 3]),
        (top_k(4), [0, 1, 2, 3]),
        (top_k(5), [0, 1, 2, 3]),
        (top_k(1000), [0, 1, 2, 3]),
        (top_p(1e-30), [1]),
        (top_p(0.45), [1, 3]),  # probabilities 0.057, 0.419, 0.154, 0.419
        (top_p(0.84), [1, 2, 3]),
        (top_p(1.0), [0, 1, 2, 3]),
        (temperature(0.0), [1]),  # the lowest of equals
        (temperature(0.5), [0, 1, 2, 3]),
    ],
)
def test_filters_keep(keep: Filter, expected: list[int]) -> None:
    before = ROW.clone()
    assert allowed(keep(ROW)) == expected
    assert torch.equal(ROW, before)


@pytest.mark.parametrize("keep", [top_k(2), top_p(0.5), top_p(1.0)])
def test_what_is_kept_keeps_its_logit(keep: Filter) -> None:
    filtered = keep(ROW)
    chosen = filtered > -INF
    assert torch.equal(filtered[chosen], ROW[chosen])


@pytest.mark.parametrize("keep", [top_k(2), top_p(0.5), top_p(1e-9), temperature(0.0), temperature(0.7)])
def test_rows_without_any_symbol_stay_so(keep: Filter) -> None:
    """No NaN, and nothing that was ruled out comes back."""
    nothing = torch.full((2, 4), -INF)
    assert torch.equal(keep(nothing), nothing)


def test_filters_leave_other_rows_alone() -> None:
    rows = torch.tensor(hash_symbols(60, 100)).float().view(6, 10) / 20
    for keep in (top_k(3), top_p(0.6), temperature(0.0), temperature(0.3)):
        assert torch.equal(keep(rows), torch.cat([keep(row[None]) for row in rows]))


def test_temperature_divides() -> None:
    assert torch.equal(temperature(0.5)(ROW), ROW * 2)
    assert torch.equal(temperature(1.0)(ROW), ROW)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: temperature(-0.1), "temperature"),
        (lambda: temperature(float("nan")), "temperature"),
        (lambda: temperature(INF), "temperature"),
        (lambda: temperature(1e-40), "temperature"),  # divides to infinities and NaN
        (lambda: top_k(0), "top_k"),
        (lambda: top_p(0.0), "top_p"),
        (lambda: top_p(1.1), "top_p"),
        (lambda: top_p(float("nan")), "top_p"),
    ],
)
def test_impossible_filters_are_refused(make: Any, word: str) -> None:
    with pytest.raises(InputError, match=word) as error:
        make()
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------- engine


def slow_sample(model: AutoregressiveModel, k: int, seed: int, filters: Sequence[Filter] = ()) -> list[int]:
    """The definition: one document alone, one symbol at a time, its noise looked up."""
    state = model.state(1)
    logits = state.extend([[]])
    while not state.done[0]:
        for keep in filters:
            logits = keep(logits)
        at = torch.tensor([k]), torch.tensor([len(state)])
        symbol = int((logits + gumbel(seed, *at, logits.shape[-1])).argmax())
        logits = state.extend([[symbol]])
    return state.streams[0]


@pytest.mark.parametrize("filters", [(), (temperature(0.7), top_k(3)), (top_p(0.8),)], ids=["none", "t and k", "p"])
def test_samples_are_those_of_the_definition(free: AutoregressiveModel, filters: Sequence[Filter]) -> None:
    found = streams(generate(free, 12, seed=3, filters=filters, batch_size=5))
    assert found == [slow_sample(free, k, 3, filters) for k in range(12)]
    assert len({tuple(symbols) for symbols in found}) > 6


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size_changes_nothing(free: AutoregressiveModel, batch_size: int) -> None:
    expected = [(s.index, s.symbols, s.stop) for s in generate(free, 10, seed=1, batch_size=4)]
    found = [(s.index, s.symbols, s.stop) for s in generate(free, 10, seed=1, batch_size=batch_size)]
    assert found == expected and [index for index, _, _ in found] == list(range(10))


def test_one_sample_can_be_made_again_alone(free: AutoregressiveModel) -> None:
    whole = list(generate(free, 10, seed=1))
    (again,) = generate(free, seed=1, samples=[7])
    assert again.index == 7 and again.symbols == whole[7].symbols
    backwards = streams(generate(free, seed=1, samples=[9, 0, 4]))
    assert backwards == [whole[k].symbols for k in (9, 0, 4)]


def test_seeds_and_samples_differ(stream: AutoregressiveModel) -> None:
    found = [tuple(s.symbols) for seed in range(3) for s in generate(stream, 5, seed=seed, max_symbols=20)]
    assert len(set(found)) == 15


def test_greedy_takes_the_most_probable(letters: AutoregressiveModel) -> None:
    (sample,) = generate(letters, 1, filters=[temperature(0.0)])
    state = letters.state(1)
    logits = state.extend([[]])
    for symbol in sample.symbols:
        assert symbol == int(logits.argmax())
        logits = state.extend([[symbol]])


def test_log_probs_are_those_of_the_model(free: AutoregressiveModel) -> None:
    """Whatever the filters and the plan do: the numbers beside a sample are the model's own."""
    prompt = [text(1, 2)]
    plan = ["letters", "picture"]
    for sample in generate(free, 4, seed=2, prompts=[prompt], plan=plan, filters=[temperature(0.3), top_k(2)]):
        nats = free.stream_log_prob(sample.document).detach()
        assert len(nats) == len(sample.symbols)
        torch.testing.assert_close(torch.tensor(sample.log_probs), nats[sample.n_prompt :], rtol=1e-4, atol=1e-5)


def test_samples_come_as_soon_as_they_are_finished(letters: AutoregressiveModel, monkeypatch: Any) -> None:
    """Whoever stops a long batch keeps what was finished before: in order, the first does not wait for the longest."""
    steps = []
    extend = State.extend
    monkeypatch.setattr(State, "extend", lambda state, symbols: steps.append(1) or extend(state, symbols))
    seed = next(seed for seed in range(50) if len(next(generate(letters, 4, seed=seed)).symbols) < 5)
    steps.clear()
    samples = generate(letters, 4, seed=seed)
    next(samples)
    n_first = len(steps)
    list(samples)
    assert n_first <= 5 and n_first < len(steps)


def test_the_model_trains_on_as_before(letters: AutoregressiveModel) -> None:
    """Dropout off while sampling, and back on after, also where the caller takes no more samples."""
    letters.train()
    try:
        samples = generate(letters, 2)
        next(samples)
        assert not letters.training
        samples.close()  # type: ignore[attr-defined]
        assert letters.training
    finally:
        letters.eval()


# -------------------------------------------------------------------------- prompts


def test_prompts_are_kept_exactly(free: AutoregressiveModel, letters: AutoregressiveModel) -> None:
    for sample in generate(letters, 5, prompts=[[text(4, 0, 5)]]):
        assert sample.document[0].flat().tolist()[:3] == [4, 0, 5]
        assert sample.symbols[: sample.n_prompt] == [0, 4, 0, 0, 0, 5]  # a decision before each: more follow
    picture = Segment("picture", torch.tensor([[1, 2, 3, 4]]), None, (2, 1))
    clip = segment_of("clip", [1, 2, 3, 4], 3)
    for beginning in (picture, clip):
        for sample in generate(free, 5, prompts=[[text(3), beginning]]):
            own = sample.document[1]
            assert sample.document[0].flat().tolist() == [3]
            assert own.modality == beginning.modality
            assert own.flat().tolist()[: beginning.length] == beginning.flat().tolist()


def test_every_sample_has_its_own_prompt(letters: AutoregressiveModel) -> None:
    """Sample k continues prompt k modulo their number; alone or beside others it is the same sample."""
    prompts: list[Document] = [[text(1)], [text(2, 3, 4)], []]
    beginnings = [[0, 1], [0, 2, 0, 3, 0, 4], []]
    for sample in generate(letters, 7, prompts=prompts, batch_size=4):
        assert sample.symbols[: sample.n_prompt] == beginnings[sample.index % 3]
        (alone,) = generate(letters, prompts=prompts, samples=[sample.index])
        assert alone.symbols == sample.symbols


def test_a_complete_prompt_is_followed_by_something_else(free: AutoregressiveModel) -> None:
    whole = [text(1, 2, 3)]
    for sample in generate(free, 6, prompts=[whole], prompt_complete=True):
        assert sample.document[0].flat().tolist() == [1, 2, 3]
    longer = [s.document[0].length for s in generate(free, 6, prompts=[whole])]
    assert max(longer) > 3


def test_a_prompt_that_is_all_there_is_needs_no_symbols() -> None:
    model = build(Picture(size=(2, 4)), layout=["picture"])
    picture = Segment("picture", torch.tensor([[1, 2, 3, 4], [0, 1, 2, 3]]), None, (2, 1))
    (sample,) = generate(model, 1, prompts=[[picture]], prompt_complete=True)
    assert (sample.stop, sample.log_probs, sample.symbols) == ("end", [], [1, 2, 3, 4, 0, 1, 2, 3])


# ------------------------------------------------------------------- ends and plans


def test_stops(letters: AutoregressiveModel, stream: AutoregressiveModel) -> None:
    """`end`: the document says so; `length`: as many symbols as asked for; `context`: no more units fit."""
    assert {s.stop for s in generate(letters, 8, seed=1)} == {"end"}
    for sample in generate(stream, 3, max_symbols=11, prompts=[[text(1, 2)]]):
        assert (sample.stop, len(sample.log_probs), len(sample.symbols)) == ("length", 11, 13)
    short = build(Letters(ended=False), layout=["letters"], context=9)
    for sample in generate(short, 3, prompts=[[text(1, 2)]]):
        assert (sample.stop, sample.document[0].length) == ("context", 9)


def test_length_counts_new_symbols_only_and_ends_may_come_first(letters: AutoregressiveModel) -> None:
    samples: list[Sample] = list(generate(letters, 20, max_symbols=6, prompts=[[text(1)]]))
    assert {s.stop for s in samples} == {"end", "length"}
    assert all(len(s.log_probs) == 6 if s.stop == "length" else len(s.log_probs) <= 6 for s in samples)


def test_a_plan_decides_what_comes(free: AutoregressiveModel) -> None:
    plan = ["picture", "letters", "clip", "letters"]
    for sample in generate(free, 5, plan=plan):
        assert [segment.modality for segment in sample.document] == plan
        assert sample.stop == "end"
    for sample in generate(
        free, 5, plan=plan, prompts=[[Segment("picture", torch.tensor([[1, 2, 3, 4]]), None, (2, 1))]]
    ):
        assert [segment.modality for segment in sample.document] == plan


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": -3}, "n is -3"),
        ({"samples": []}, "samples is empty"),
        ({"samples": [-1]}, "samples names -1"),
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
        generate(stream, 1)


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    model = build(Letters(ended=False), layout=["letters"], context=4)
    assert prompt_stream(model, [text(1, 2, 3)]) == [1, 2, 3]
    with pytest.raises(InputError, match="4 units, the model's context is 4"):
        generate(model, 1, prompts=[[text(1, 2, 3, 4)]])


def test_prompts_and_plans_that_do_not_fit_the_layout_are_refused(letters: AutoregressiveModel) -> None:
    with pytest.raises(InputError, match="the prompt is clip"):
        generate(letters, 1, prompts=[[segment_of("clip", [1], 3)]])
    with pytest.raises(InputError, match="always letters"):
        generate(letters, 1, plan=["letters"])
    with pytest.raises(InputError, match="outside"):
        list(generate(letters, 1, prompts=[[text(99)]]))
