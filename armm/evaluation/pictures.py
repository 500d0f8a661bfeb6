"""Pictures of classes, judged by a support vector machine that was trained on real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from armm.datasets.source import Item
from armm.errors import InputError
from armm.evaluation.prompted import ask, check_names, take
from armm.evaluation.score import Material, Score, Value
from armm.model import AutoregressiveModel

N_TRAIN = 6000  # pictures the judge learns from; more only take longer


@dataclass(frozen=True)
class PictureOfClass(Score):
    """The share of generated pictures that the judge puts into the class that was asked for.

    The judge is a support vector machine on pixels with a Gaussian kernel (scikit-learn), trained on the training
    pictures; how often it is right about real test pictures is reported too. The prompts are those of test items.

    Attributes:
        given: modalities of the prompt, such as the caption. image: what is generated. label: where items have the
            class.
        n: pictures to generate. guidance: strength of classifier-free guidance; null for none.
        name: of the number; `agreement` by default, and `judge` for the judge itself.
    """

    given: tuple[str, ...] = ("text",)
    image: str = "image"
    label: str = "label"
    n: int = 500
    guidance: float | None = 2.0
    name: str = "agreement"

    def check(self, model: AutoregressiveModel) -> None:
        check_names(model, (*self.given, self.image))
        _sklearn()

    def evaluate(self, model: AutoregressiveModel, data: Material) -> dict[str, Value]:
        judge = self._judge(data.items("train", N_TRAIN))
        real = data.items("test")
        known = judge.predict(self._pixels(real)) == self._classes(real)
        n = data.n_trials(self.n, self.n)
        items = [real[i % len(real)] for i in range(n)]
        agreed = 0
        for sample in ask(model, items, self.given, self.image, data.seed, guidance=self.guidance):
            picture = np.asarray(sample.decoded[len(self.given)]).reshape(1, -1)
            agreed += int(judge.predict(picture.astype(np.float64))[0] == take(items[sample.prompt], self.label))
        return {self.name: Value(agreed / n, n), "judge": Value(float(known.mean()), len(real))}

    def _judge(self, items: list[Item]) -> Any:
        classes = self._classes(items)
        if len(set(classes.tolist())) < 2:
            raise InputError(f"scores: the training data has one {self.label!r} only, so nothing can be told apart")
        return _sklearn()(C=10.0, gamma="scale").fit(self._pixels(items), classes)

    def _pixels(self, items: list[Item]) -> np.ndarray:
        return np.stack([np.asarray(take(item, self.image), dtype=np.float64).ravel() for item in items])

    def _classes(self, items: list[Item]) -> np.ndarray:
        return np.array([take(item, self.label) for item in items])


def _sklearn() -> Any:
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        raise InputError(f"the judge of pictures needs scikit-learn ({error}); pip install armm[datasets]") from error
    return SVC
