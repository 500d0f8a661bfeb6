"""Laws 5 and 6: samples depend on seed and number alone, and have the model's probabilities; and the checks see red."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from laws.cases import CASES, COUNTABLE
from torch import Tensor

from armm.generation import Filter, FixedPoint, Temperature, TopK, TopP, draw
from armm.generation.engine import Engine, Finished
from armm.generation.filter import Row
from armm.generation.units import UnitDrawer
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.state import State
from armm.testing import LawBroken, check_same_sample, check_sampler
from armm.testing.sampling import FILTERS, Nats, chi_square_tail, heated, most_probable, nucleus, poisson_tail

BACKBONE = dict(zip(CASES, ["small", "gpt2", "llama", "none"] * len(CASES), strict=False))


@pytest.mark.parametrize("case", CASES)
def test_sample_is_the_same_alone_batched_and_permuted(case: str) -> None:
    model = CASES[case].model(BACKBONE[case])
    check_same_sample(model, max_symbols=14)
    check_same_sample(model, n=3, max_symbols=8, filters=[Temperature(0.7), TopK(20), TopP(0.9)])


def beginnings(model: AutoregressiveModel, documents: Sequence[Document]) -> list[Document]:
    """What prompts of different lengths are made of: documents without their ends."""
    grammar = model.grammar
    streams = [grammar.flatten(document) for document in documents]
    return [grammar.parse(stream[: len(stream) // n]) for n, stream in enumerate(streams, 1)]


@pytest.mark.parametrize("case", ["text bytes", "text bytes in fours", "image rows", "audio", "free documents"])
def test_sample_is_the_same_with_prompts_of_different_lengths(case: str) -> None:
    model = CASES[case].model()
    check_same_sample(model, n=6, prompts=beginnings(model, CASES[case].documents(model)), max_symbols=10)


@pytest.mark.parametrize("case", COUNTABLE)
def test_samples_come_as_often_as_their_probability_says(case: str) -> None:
    """With no filter and with all of them; the other filters are tried on two models below."""
    names = ["no filter", "temperature 1.5, top-k 3, top-p 0.8"]
    check_sampler(COUNTABLE[case].model(), 1000, filters={name: FILTERS[name] for name in names})


@pytest.mark.parametrize("case", ["text", "image RGB rows"])
def test_samples_have_the_filtered_probabilities(case: str) -> None:
    check_sampler(COUNTABLE[case].model("none"))


def test_tails_of_the_distributions_are_those_in_the_tables() -> None:
    for x, degrees, tail in [(3.841459, 1, 0.05), (18.307038, 10, 0.05), (0.0, 3, 1.0), (149.4493, 100, 0.001)]:
        assert chi_square_tail(x, degrees) == pytest.approx(tail, rel=1e-4)
    for count, mean, tail in [(0, 0.5, 1.0), (1, 0.5, 0.3934693), (3, 0.2, 0.0011485), (12, 4.0, 0.0009152)]:
        assert poisson_tail(count, mean) == pytest.approx(tail, rel=1e-3)


# ------------------------------------------------------------- planted faults

Noise = Callable[..., Tensor]


def of_batch_column(seed: int, samples: Tensor, positions: Tensor, vocab: int, compiled: bool = False) -> Tensor:
    columns = torch.arange(samples.shape[0]).view(-1, *[1] * (samples.dim() - 1))
    return GUMBEL(seed, columns.expand_as(samples), positions, vocab)


def of_a_generator(seed: int, samples: Tensor, positions: Tensor, vocab: int, compiled: bool = False) -> Tensor:
    """As everyone else does it: each call draws on."""
    return -torch.log(-torch.log(torch.rand(*samples.shape, vocab, generator=GENERATOR)))


def of_half_strength(seed: int, samples: Tensor, positions: Tensor, vocab: int, compiled: bool = False) -> Tensor:
    return GUMBEL(seed, samples, positions, vocab, compiled) / 2


def of_no_position(seed: int, samples: Tensor, positions: Tensor, vocab: int, compiled: bool = False) -> Tensor:
    return GUMBEL(seed, samples, torch.zeros_like(positions), vocab, compiled)


def of_another_shape(seed: int, samples: Tensor, positions: Tensor, vocab: int, compiled: bool = False) -> Tensor:
    """Uniform, not Gumbel."""
    return torch.exp(-torch.exp(-GUMBEL(seed, samples, positions, vocab, compiled)))


def of_neighbours(seed: int, samples: Tensor, positions: Tensor, vocab: int, compiled: bool = False) -> Tensor:
    """Pairs of values share their noise."""
    return GUMBEL(seed, samples, positions, vocab, compiled)[..., torch.arange(vocab) // 2]


GUMBEL: Noise = draw.gumbel
GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("noise", [of_batch_column, of_a_generator])
def test_noise_that_depends_on_the_batch_is_caught(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES["text bytes in fours"].model()
    monkeypatch.setattr(draw, "gumbel", noise)
    with pytest.raises(LawBroken, match=r"^same seed, same sample: "):
        check_same_sample(model, max_symbols=8)


def test_filter_that_looks_at_other_rows_is_caught() -> None:
    model = CASES["image rows"].model()

    centred = Own(lambda logits: logits - logits.mean(0) if len(logits) > 1 else logits)
    with pytest.raises(LawBroken, match=r"^same seed, same sample: "):
        check_same_sample(model, max_symbols=8, filters=[centred])


def test_rows_that_change_places_when_one_ends_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES["text bytes in fours"].model()
    gather = State.gather_rows

    def reversed_rows(state: State, index: Sequence[int]) -> None:
        gather(state, index if len(index) >= state.n_rows else list(reversed(index)))

    monkeypatch.setattr(State, "gather_rows", reversed_rows)
    with pytest.raises(LawBroken, match=r"^same seed, same sample: "):
        check_same_sample(model, n=6)


def test_sample_that_does_not_come_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES["text bytes"].model()
    original = Engine.run

    def forgetful(engine: Engine) -> Iterator[Any]:
        many = len(engine.lanes) > 4
        yield from (
            event for event in original(engine) if not (many and getattr(event, "stop", "") and event.index == 4)
        )

    monkeypatch.setattr(Engine, "run", forgetful)
    with pytest.raises(LawBroken, match=r"^same seed, same sample: samples"):
        check_same_sample(model, max_symbols=2)


def test_guesses_that_are_taken_unseen_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of the fixed point is right about its first place only."""
    model = CASES["image rows"].model()

    def one_pass(
        units: UnitDrawer, state: State, rows: Any, guesses: Tensor, channels: int, given: Any, noise: Tensor
    ) -> Any:
        logits = state.ahead(rows, guesses)
        drawn = (logits + noise).argmax(-1)
        state.accept(rows, drawn)
        return drawn.tolist(), logits

    monkeypatch.setattr(UnitDrawer, "_settle", one_pass)
    with pytest.raises(LawBroken, match=r"^same seed, same sample: .* guessed by FixedPoint"):
        check_same_sample(model, max_symbols=20, proposers=[FixedPoint()])


def test_guesses_verified_by_logits_of_another_place_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASES["text bytes"].model()
    original = State.verify

    def shifted(state: State, guesses: Sequence[Sequence[int]]) -> list[list[Tensor]]:
        return [own[:1] * len(own) for own in original(state, guesses)]

    monkeypatch.setattr(State, "verify", shifted)
    with pytest.raises(LawBroken, match=r"^same seed, same sample: .* guessed by Knowing"):
        check_same_sample(model, max_symbols=40, proposers=[])


@pytest.mark.parametrize("noise", [of_half_strength, of_no_position, of_another_shape, of_neighbours])
def test_noise_of_another_distribution_is_caught(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    model = COUNTABLE["image RGB rows"].model("none")
    monkeypatch.setattr(draw, "gumbel", noise)
    with pytest.raises(LawBroken, match=r"^the sampler samples: no filter: "):
        check_sampler(model, filters={"no filter": FILTERS["no filter"]})


@dataclass(frozen=True)
class Own(Filter):
    """A filter made of a function of the logits."""

    order: ClassVar[int] = 99
    function: Callable[[Tensor], Tensor]

    def __call__(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        return self.function(logits)


def strict_top_p(logits: Tensor) -> Tensor:
    """Leaves out the symbol that crosses p."""
    ordered, index = logits.sort(dim=-1, descending=True)
    keep = (ordered.softmax(-1).cumsum(-1) < 0.7).index_fill(-1, torch.tensor(0), True)
    return logits.masked_fill(~torch.zeros_like(keep).scatter(-1, index, keep), float("-inf"))


WRONG_FILTERS: dict[str, tuple[Filter, Callable[[Nats], Any]]] = {
    "temperature that multiplies": (Own(lambda logits: logits * 1.5), lambda nats: heated(nats, 1.5)),
    "temperature before it is cold": (Temperature(0.1), lambda nats: heated(nats, 0)),
    "top-k with one too many": (TopK(3), lambda nats: most_probable(nats, 2)),
    "top-k with one too few": (TopK(1), lambda nats: most_probable(nats, 2)),
    "top-p without the symbol that crosses p": (Own(strict_top_p), lambda nats: nucleus(nats, 0.7)),
    "no filter at all": (Own(lambda logits: logits), lambda nats: nucleus(nats, 0.7)),
}


@pytest.mark.parametrize("name", WRONG_FILTERS)
def test_filter_that_is_not_its_definition_is_caught(name: str) -> None:
    """The right filters pass on the same model in `test_samples_have_the_filtered_probabilities`."""
    wrong, definition = WRONG_FILTERS[name]
    model = COUNTABLE["image RGB rows"].model("none")
    with pytest.raises(LawBroken, match=r"^the sampler samples: "):
        check_sampler(model, filters={name: ([wrong], definition)})


def test_log_probabilities_of_the_filtered_distribution_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample's log-probabilities are the model's, whatever filters it was made with."""
    model = COUNTABLE["text"].model()
    original = Engine.run

    def spoilt(engine: Engine) -> Iterator[Any]:
        for event in original(engine):
            if isinstance(event, Finished):
                event.log_probs[0] = 0.0
            yield event

    monkeypatch.setattr(Engine, "run", spoilt)
    with pytest.raises(LawBroken, match="nats, the model"):
        check_sampler(model, filters={"no filter": FILTERS["no filter"]})
