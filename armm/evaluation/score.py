"""The contract of a score: what a recipe lists under `scores`, computed from a trained model and its data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from armm.datasets.documents import Documents
from armm.datasets.source import Item, Items, Splits, spread
from armm.errors import InputError
from armm.model import AutoregressiveModel
from armm.sequence import Document

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Value:
    """A number, and of how many things it was computed.

    Attributes:
        value: a share from 0 to 1, or bits or nats, as its name says.
        n_trials: samples, answers or documents it is the mean of; what its standard error follows from.
    """

    value: float
    n_trials: int


@dataclass(frozen=True)
class Material:
    """The data of a run, as scores see it.

    Attributes:
        splits: raw items. Judges are trained on `train`; what is reported is of `test`.
        conditions: modalities that are given in every document.
        at_most: so many trials a score and no more, to see that it runs; None for as many as the score wants.
        seed: of samples.
    """

    splits: Splits
    conditions: tuple[str, ...] = ()
    at_most: int | None = None
    seed: int = 0

    def n_trials(self, wanted: int | None, there: int) -> int:
        """How many of those that are there are taken, where a score wants so many (None: all)."""
        return min([there, *(limit for limit in (wanted, self.at_most) if limit is not None)])

    def items(self, split: Split = "test", n: int | None = None) -> list[Item]:
        """Raw items, evenly spread over the split; at most n. Of the training split, which judges learn from, n."""
        items = self._split(split)
        n_items = n if split == "train" else self.n_trials(n, len(items))
        return [items.item(i, i) for i in spread(len(items), n_items)]

    def documents(self, model: AutoregressiveModel, split: Split = "test", n: int | None = None) -> list[Document]:
        """The same items as documents of the model, what is given marked as such."""
        items = self._split(split)
        documents = Documents(items, model.grammar, self.conditions)
        return [documents.document(i, i) for i in spread(len(items), self.n_trials(n, len(items)))]

    def _split(self, split: Split) -> Items:
        return {"train": self.splits.train, "val": self.splits.val, "test": self.splits.test}[split]


class Score(ABC):
    """What a recipe lists under `scores`: a frozen dataclass.

    It computes its numbers from a trained model and the run's data, in evaluation mode, the same every time.
    """

    def check(self, model: AutoregressiveModel) -> None:
        """Say before training what cannot work.

        Raises InputError: the model lacks a modality that the score is about, or a package is missing.
        """
        return None

    @abstractmethod
    def evaluate(self, model: AutoregressiveModel, data: Material) -> Mapping[str, Value]:
        """The numbers by name; names are those of `metrics.json`.

        Raises InputError: the data lacks something that the score needs.
        """


def evaluate(
    scores: Sequence[Score], model: AutoregressiveModel, data: Material
) -> dict[str, dict[str, float]]:  # plain, as `metrics.json` has it
    """Every score's numbers, by name: `{"agreement": {"value": 0.97, "n_trials": 500}}`.

    Raises InputError: a score cannot be computed, or two have numbers of one name.
    """
    found: dict[str, dict[str, float]] = {}
    training = model.training
    model.eval()
    try:
        for score in scores:
            for name, own in score.evaluate(model, data).items():
                if name in found:
                    raise InputError(f"scores: {name!r} is computed twice; drop one of the two")
                found[name] = {"value": own.value, "n_trials": own.n_trials}
    finally:
        model.train(training)
    return found
