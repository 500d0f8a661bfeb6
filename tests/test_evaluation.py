"""Scores: what they are told of a run's data, and that each judge tells right from wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from armm.backbones import Transformer
from armm.datasets import Digits, ListOfItems, Splits
from armm.errors import InputError
from armm.evaluation import Material, Score, Value, evaluate, exact_match, pictures, speech
from armm.evaluation.exact_match import ExactMatch
from armm.evaluation.listening import Judge, flatness, loudest
from armm.evaluation.pictures import PictureOfClass
from armm.evaluation.speech import SpokenClass
from armm.generation import Sample
from armm.heads import CausalConv
from armm.modalities import Audio, Image, Label, Text
from armm.model import AutoregressiveModel, LogProbs
from armm.sequence import Batch

BACKBONE = Transformer(width=16, n_layers=1, n_heads=2)


def words(n: int) -> Splits:
    items = ListOfItems([{"label": i % 10, "text": f"no {i % 10}"} for i in range(n)])
    return Splits(items, items, items)


def words_model() -> AutoregressiveModel:
    return AutoregressiveModel({"label": Label(10), "text": Text("bytes", ended=True)}, BACKBONE, ["label", "text"])


def sample(number: int, model: AutoregressiveModel, *raws: object, stop: str = "end") -> Sample:
    document = [modality.encode(raw) for modality, raw in zip(model.modalities.values(), raws, strict=True)]
    return Sample(number, [], 0, document, list(raws), [], stop, False, number)


# ------------------------------------------------------------------------------ the contract


@dataclass(frozen=True)
class Count(Score):
    name: str = "n"

    def evaluate(self, model: AutoregressiveModel, data: Material) -> Mapping[str, Value]:
        assert not model.training
        return {self.name: Value(1.0, len(data.items("test")))}


def test_scores_are_plain_numbers_by_name() -> None:
    model = words_model().train()
    found = evaluate([Count(), Count("m")], model, Material(words(7), at_most=3))
    assert found == {"n": {"value": 1.0, "n_trials": 3}, "m": {"value": 1.0, "n_trials": 3}}
    assert model.training
    with pytest.raises(InputError, match="'n' is computed twice"):
        evaluate([Count(), Count()], model, Material(words(7)))


def test_trials_are_limited_and_judges_are_not() -> None:
    """A run that only shows that everything works still has judges that know all classes."""
    data = Material(words(40), conditions=("label",), at_most=4)
    assert [item["label"] for item in data.items("test")] == [0, 3, 6, 9]
    assert len(data.items("train")) == 40 and len(data.items("train", 10)) == 10
    documents = data.documents(words_model(), "test", 2)
    assert [[segment.n_given for segment in document] for document in documents] == [[1, 0], [1, 0]]
    assert (data.n_trials(100, 40), data.n_trials(2, 40), data.n_trials(None, 3)) == (4, 2, 3)


# ------------------------------------------------------------------------------- exact match


def test_a_match_is_every_symbol_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = words_model()

    def made(model: AutoregressiveModel, items: list[dict], *_: object) -> Iterator[Sample]:
        texts = ["no 0", "no 1 ", "no", "no 3", "no 4"]
        for number in (4, 2, 0, 1):  # in any order
            yield sample(number, model, number, texts[number])
        yield sample(3, model, 3, "no 3", stop="context")

    monkeypatch.setattr(exact_match, "ask", made)
    assert ExactMatch(("label",), "text").evaluate(model, Material(words(5))) == {"exact_text": Value(0.4, 5)}


def test_names_are_checked_before_training() -> None:
    model = words_model()
    ExactMatch(("label",), "text").check(model)
    for score in (ExactMatch(("lable",), "text"), ExactMatch(("text",), "label"), ExactMatch((), "text")):
        with pytest.raises(InputError, match="scores: "):
            score.check(model)
    with pytest.raises(InputError, match="sample_rate"):
        SpokenClass(("label",), said="label", audio="text").check(model)


# ------------------------------------------------------------------------------------ judges


def test_the_judge_of_pictures_knows_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real ones as samples agree as often as the judge is right; those of another class do not."""
    image = Image(size=(8, 8), levels=17, head=CausalConv(4))
    model = AutoregressiveModel({"label": Label(10), "image": image}, BACKBONE, ["label", "image"])
    splits = Digits().load({"image": image}, None, "fail")
    wrong = 0

    def made(model: AutoregressiveModel, items: list[dict], *_: object, **__: object) -> Iterator[Sample]:
        for number, item in enumerate(items):
            other = items[(number + wrong) % len(items)]
            yield sample(number, model, item["label"], other["image"])

    monkeypatch.setattr(pictures, "ask", made)
    score = PictureOfClass(given=("label",), n=200)
    found = score.evaluate(model, Material(splits))
    assert found["judge"].value > 0.97 and found["judge"].n_trials == 297
    assert found["agreement"].value > 0.97 and found["agreement"].n_trials == 200
    wrong = 1
    assert score.evaluate(model, Material(splits))["agreement"].value < 0.3


RATE = 4000


def tone(word: int, number: int) -> np.ndarray:
    """Class 0 is low and falls, class 1 high and rises."""
    rng = np.random.default_rng([word, number])
    n = int(rng.integers(1200, 2400))
    pitch = np.linspace(300, 250, n) if word == 0 else np.linspace(700, 900, n)
    phase = 2 * np.pi * np.cumsum(pitch * rng.uniform(0.9, 1.1)) / RATE
    return (0.5 * np.sin(phase) * np.hanning(n) + rng.normal(0, 0.003, n)).astype(np.float32)


def test_the_judge_of_clips_tells_tones_apart() -> None:
    clips, classes = [tone(i % 2, i) for i in range(24)], [str(i % 2) for i in range(24)]
    judge = Judge(clips, classes, RATE, n_steps=40)
    assert judge.classify([tone(i % 2, 100 + i) for i in range(20)]) == ["0", "1"] * 10
    again = Judge(clips, classes, RATE, n_steps=40)
    assert all((a == b).all() for a, b in zip(judge.network.parameters(), again.network.parameters(), strict=True))


def test_noise_is_flat_and_loudness_is_that_of_the_loudest_part() -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 4000)
    assert flatness(noise, RATE) > 0.4 > 0.05 > flatness(tone(0, 0), RATE)
    quiet = np.concatenate([np.zeros(4000), np.full(200, 0.5), np.zeros(4000)])
    assert loudest(quiet, RATE) == pytest.approx(0.5) and loudest(np.zeros(10), RATE) == 0 == loudest(np.zeros(0), RATE)


def test_spoken_words_are_heard_and_what_went_wrong_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence, noise and a clip without an end are failures; the likelihood classifier goes by the model's numbers."""
    audio = Audio(sample_rate=RATE, frame=20, head=CausalConv(channels=4, dilations=(1, 4)))
    model = AutoregressiveModel({"text": Text("bytes", ended=True), "audio": audio}, BACKBONE, ["text", "audio"])
    items = ListOfItems(
        [
            {"text": ["low", "high"][i % 2], "label": i % 2, "audio": tone(i % 2, i), "who": "ab"[i > 3]}
            for i in range(20)
        ]
    )

    def made(model: AutoregressiveModel, items: list[dict], *_: object) -> Iterator[Sample]:
        for number, item in enumerate(items):
            clip, stop = tone(item["label"], 50 + number), "end"
            if number == 0:
                clip = clip * 0.01
            elif number == 1:
                clip = np.random.default_rng(0).uniform(-1, 1, 2000).astype(np.float32)
            elif number == 2:
                stop = "context"
            yield sample(number, model, item["text"], clip, stop=stop)

    monkeypatch.setattr(speech, "ask", made)
    real = Judge
    monkeypatch.setattr(speech, "Judge", lambda clips, classes, rate: real(clips, classes, rate, n_steps=40))
    log_prob = model.log_prob

    def always_low(batch: Batch, **_: object) -> LogProbs:
        nats = log_prob(batch)
        nats.payload["audio"][1:] -= 1e4
        return nats

    monkeypatch.setattr(model, "log_prob", always_low)
    found = SpokenClass(given=("text",), by="who", n=10).evaluate(model, Material(Splits(items, items, items)))
    assert found["judge"] == Value(1.0, 20) and found["runaway_or_silent"] == Value(0.3, 10)
    assert found["runaway_or_silent_a"] == Value(0.75, 4) and found["runaway_or_silent_b"] == Value(0.0, 6)
    assert found["agreement_b"] == Value(1.0, 6)
    assert found["agreement"].value >= 0.8
    assert found["likelihood_classifier"] == Value(0.5, 20)
