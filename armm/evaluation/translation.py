"""What a source says about its target: bits with it and without it, and words that made and real targets share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import log

from armm.evaluation.likelihood import payload_nats
from armm.evaluation.prompted import ask, check_names
from armm.evaluation.score import Material, Score, Value
from armm.generation import Temperature
from armm.model import AutoregressiveModel


@dataclass(frozen=True)
class TargetBits(Score):
    """Bits of the test targets in the natural unit of theirs, with their sources and without.

    Attributes:
        given, target: names of the modalities. n: at most so many items; all by default.
    """

    given: str = "source"
    target: str = "target"
    n: int | None = None

    def check(self, model: AutoregressiveModel) -> None:
        check_names(model, (self.given, self.target))

    def evaluate(self, model: AutoregressiveModel, data: Material) -> Mapping[str, Value]:
        source, target = model.modalities[self.given], model.modalities[self.target]
        items = data.items("test", self.n)
        documents = [
            [source.encode(item[self.given]).as_condition(), target.encode(item[self.target])] for item in items
        ]
        without = [model.grammar.without_conditions(document, 1) for document in documents]
        n = sum(target.n_bits_per(document[1]) for document in documents)
        unit, found = target.bits_per, {}
        for name, own in ((f"target_bits_per_{unit}", documents), (f"target_bits_per_{unit}_without_source", without)):
            found[name] = Value(payload_nats(model, own)[self.target][0] / log(2) / max(n, 1), n)
        return found


@dataclass(frozen=True)
class SharedWords(Score):
    """ROUGE-1 (Lin, 2004): F1 of the words that a greedy target shares with the real one, and with another item's.

    Attributes:
        given, target: names of the modalities. n: how many items.
    """

    given: str = "source"
    target: str = "target"
    n: int = 100

    def check(self, model: AutoregressiveModel) -> None:
        check_names(model, (self.given, self.target))

    def evaluate(self, model: AutoregressiveModel, data: Material) -> Mapping[str, Value]:
        items = data.items("test", self.n)
        own = other = 0.0
        for sample in ask(model, items, [self.given], self.target, data.seed, [Temperature(0)]):
            made = str(sample.decoded[1]) if len(sample.decoded) > 1 else ""
            own += shared(made, items[sample.prompt][self.target])
            other += shared(made, items[sample.prompt - 1][self.target])
        n = len(items)
        return {"rouge_1": Value(own / n, n), "rouge_1_of_another": Value(other / n, n)}


def shared(made: str, real: str) -> float:
    """F1 of two bags of words, 0 to 1."""
    bags = [Counter(re.findall(r"\w+", text.lower())) for text in (made, real)]
    n_shared = (bags[0] & bags[1]).total()
    return 2 * n_shared / max(bags[0].total() + bags[1].total(), 1)
