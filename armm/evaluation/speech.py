"""Spoken words, judged by a network that was trained on real clips, and by the model's own likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from armm.batching import collate
from armm.datasets.source import Item
from armm.errors import InputError
from armm.evaluation.listening import Judge, flatness, loudest
from armm.evaluation.prompted import ask, check_names, document, take
from armm.evaluation.score import Material, Score, Value
from armm.generation import Temperature
from armm.model import AutoregressiveModel

N_TRAIN = 3000
DEBUG_STEPS = 5


@dataclass(frozen=True)
class SpokenClass(Score):
    """What generated clips say.

    `agreement`: the share that the judge hears as the class that was asked for; `judge`: its share of real test clips.
    `likelihood_classifier`: the share of real test clips that the model finds most probable under their own text.
    `runaway_or_silent`: clips that do not end by themselves, that are more like noise than any real training clip
    (spectral flatness), or whose loudest 50 ms are below half of the quietest real one's.

    Attributes:
        given: modalities of the prompt. said: which of them tells the class. audio: what is generated.
        label: where items have the class. by: where they have, say, who speaks: `agreement_jackson` and
            `runaway_or_silent_jackson` are those of one speaker's clips.
        n: clips to generate; n_real: test clips for the likelihood classifier, all by default.
        temperature: of the sound, not of when it ends. guidance: strength of classifier-free guidance; null for none.
    """

    given: tuple[str, ...] = ("text", "speaker")
    said: str = "text"
    audio: str = "audio"
    label: str = "label"
    by: str | None = None
    n: int = 200
    n_real: int | None = None
    temperature: float = 1.0
    guidance: float | None = None

    def check(self, model: AutoregressiveModel) -> None:
        check_names(model, (*self.given, self.audio))
        if self.said not in self.given:
            raise InputError(f"scores: SpokenClass.said is {self.said!r}, expected one of given: {self.given}")
        if not hasattr(model.modalities[self.audio], "sample_rate"):
            raise InputError(f"scores: SpokenClass is about audio, and {self.audio!r} has no sample_rate")

    def evaluate(self, model: AutoregressiveModel, data: Material) -> dict[str, Value]:
        rate: int = model.modalities[self.audio].sample_rate  # type: ignore[attr-defined]
        train, real = data.items("train", N_TRAIN), data.items("test")
        clips = [self._heard(model, item) for item in train]
        classes = [self._class(item) for item in train]
        if len(set(classes)) < 2:
            raise InputError(f"scores: the training data has one {self.label!r} only, so nothing can be told apart")
        judge = Judge(clips, classes, rate, *([] if data.at_most is None else [DEBUG_STEPS]))
        heard = judge.classify([self._heard(model, item) for item in real])
        right = sum(own == self._class(item) for own, item in zip(heard, real, strict=True))
        return {
            "judge": Value(right / len(real), len(real)),
            **self._made(model, data, real, judge, clips, rate),
            "likelihood_classifier": self._likelihoods(model, data, train),
        }

    def _made(
        self,
        model: AutoregressiveModel,
        data: Material,
        real: list[Item],
        judge: Judge,
        clips: Sequence[np.ndarray],
        rate: int,
    ) -> dict[str, Value]:
        n = data.n_trials(self.n, self.n)
        items = [real[i % len(real)] for i in range(n)]
        quietest, noisiest = min(loudest(c, rate) for c in clips), max(flatness(c, rate) for c in clips)
        filters = [] if self.temperature == 1 else [Temperature(self.temperature, self.audio)]
        made: list[np.ndarray] = []
        asked: list[Item] = []
        failed: list[bool] = []
        for sample in ask(model, items, self.given, self.audio, data.seed, filters, self.guidance):
            clip = np.asarray(sample.decoded[len(self.given)])
            is_silent = loudest(clip, rate) < quietest / 2
            failed.append(sample.stop != "end" or is_silent or flatness(clip, rate) > noisiest)
            made.append(clip if len(clip) else np.zeros(1, dtype=np.float32))
            asked.append(items[sample.prompt])
        agreed = [own == self._class(item) for own, item in zip(judge.classify(made), asked, strict=True)]
        groups = {"": range(n)}
        if self.by is not None:
            who = [str(take(item, self.by)) for item in asked]
            groups |= {f"_{name}": [i for i in range(n) if who[i] == name] for name in sorted(set(who))}
        return {
            f"{score}{name}": Value(sum(found[i] for i in own) / len(own), len(own))
            for score, found in (("agreement", agreed), ("runaway_or_silent", failed))
            for name, own in groups.items()
        }

    @torch.inference_mode()
    def _likelihoods(self, model: AutoregressiveModel, data: Material, train: list[Item]) -> Value:
        """Of each test clip, under the words of every class."""
        words: dict[str, Any] = {}
        for item in train:
            words.setdefault(self._class(item), take(item, self.said))
        items = data.items("test", self.n_real)
        right = 0
        for item in items:
            documents = [document(model, {**item, self.said: word}, self.given, self.audio) for word in words.values()]
            batch = collate(documents, model.grammar).to(model.begin.device)
            nats = model.log_prob(batch, only_scored=True)
            own = (nats.payload[self.audio] * batch.segments[self.audio].weights[..., None]).sum((1, 2))
            if self.audio in nats.decisions:
                own = own + (nats.decisions[self.audio] * batch.segments[self.audio].weights).sum(1)
            right += list(words)[int(own.argmax())] == self._class(item)
        return Value(right / len(items), len(items))

    def _heard(self, model: AutoregressiveModel, item: Item) -> np.ndarray:
        """A clip as the model codes it, so that the judge knows the noise of that."""
        modality = model.modalities[self.audio]
        return modality.decode(modality.encode(take(item, self.audio)))

    def _class(self, item: Item) -> str:
        return str(take(item, self.label))
