"""Whether an assistant calls its calculator, and says what that says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from armm.datasets.chats import ASSISTANT, CALL, TOOL, USER, calculator
from armm.errors import InputError, nearest
from armm.evaluation.score import Material, Score, Value
from armm.generation import Regex, Temperature, converse
from armm.model import AutoregressiveModel

SHAPE = CALL.pattern.replace(r"\d", "[0-9]")


@dataclass(frozen=True)
class ToolUse(Score):
    """Questions about sums that training has not asked: the share of valid calls, free and under the grammar of calls;
    of calls that compute what was asked; and of answers, under the grammar, that state its value.

    Attributes:
        n: how many questions.
    """

    n: int = 100

    def check(self, model: AutoregressiveModel) -> None:
        for name in (USER, ASSISTANT, TOOL):
            if name not in model.modalities:
                raise InputError(f"scores: there is no modality {name!r}{nearest(name, model.modalities)}")

    def evaluate(self, model: AutoregressiveModel, data: Material) -> Mapping[str, Value]:
        items = data.items("test", self.n)
        shape = Regex(SHAPE, model.modalities[ASSISTANT])
        greedy = [Temperature(0)]
        n_free = n_valid = n_meant = n_right = 0
        for item in items:
            asked = [model.modalities[USER].encode(item["question"])]
            _, said = converse(model, asked, calculator, filters=greedy, most=1, seed=data.seed)
            n_free += CALL.fullmatch(said[0]) is not None
            _, said = converse(
                model, asked, calculator, filters=greedy, first_filters=[shape, *greedy], most=2, seed=data.seed
            )
            wanted = f"calc({item['a']}{item['operator']}{item['b']})"
            n_valid += CALL.fullmatch(said[0]) is not None
            n_meant += said[0] == wanted
            numbers = re.findall(r"-?\d+", said[-1])
            n_right += len(said) == 2 and bool(numbers) and numbers[-1] == calculator(wanted)
        counts = {
            "valid_calls_free": n_free,
            "valid_calls": n_valid,
            "right_calls": n_meant,
            "right_answers": n_right,
        }
        return {name: Value(count / len(items), len(items)) for name, count in counts.items()}
