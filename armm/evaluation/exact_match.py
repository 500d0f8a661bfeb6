"""How often what is generated is exactly what it should be."""

from __future__ import annotations

from dataclasses import dataclass

from armm.errors import InputError
from armm.evaluation.prompted import ask, check_names
from armm.evaluation.score import Material, Score, Value
from armm.generation import Temperature
from armm.model import AutoregressiveModel


@dataclass(frozen=True)
class ExactMatch(Score):
    """The share of held-out items whose target the model writes exactly, greedily: every symbol, and its end.

    Attributes:
        given: modalities of the prompt, in order. target: what follows.
        n: items of the test; all by default.
        name: of the number; `exact_<target>` by default.
    """

    given: tuple[str, ...]
    target: str
    n: int | None = None
    name: str = ""

    def check(self, model: AutoregressiveModel) -> None:
        check_names(model, (*self.given, self.target))
        if not self.given:
            raise InputError("scores: ExactMatch.given is empty; name what comes before the target")

    def evaluate(self, model: AutoregressiveModel, data: Material) -> dict[str, Value]:
        items = data.items("test", self.n)
        right = 0
        for sample in ask(model, items, self.given, self.target, data.seed, [Temperature(0)]):
            wanted = model.modalities[self.target].encode(items[sample.prompt][self.target])
            made = sample.document[len(self.given) :]
            right += bool(made) and sample.stop == "end" and made[0].flat().tolist() == wanted.flat().tolist()
        return {self.name or f"exact_{self.target}": Value(right / len(items), len(items))}
