"""How well music is predicted: nats of a token (one voice in one sixteenth) and of a quarter (all voices in four).

The best n-gram model of the JSB chorales on this grid (interpolated: the same voice before, the place in the beat, the
voices above, the quarter before) has 0.616 nats a token, 9.85 a quarter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from armm.datasets.files import reader
from armm.errors import InputError
from armm.evaluation.likelihood import payload_nats
from armm.evaluation.score import Material, Score, Value
from armm.modalities.midi import STEPS_PER_QUARTER
from armm.modalities.music import Music
from armm.model import AutoregressiveModel


@dataclass(frozen=True)
class MusicNats(Score):
    """Nats a token and a quarter on the test pieces, each as it is written.

    Attributes:
        n: at most so many pieces; all by default.
    """

    n: int | None = None

    def check(self, model: AutoregressiveModel) -> None:
        music(model)

    def evaluate(self, model: AutoregressiveModel, data: Material) -> Mapping[str, Value]:
        own = music(model)
        documents = data.documents(model, "test", self.n)
        nats, n_tokens = payload_nats(model, documents)[own.name]
        per_token = nats / max(n_tokens, 1)
        return {
            "nats_per_token": Value(per_token, n_tokens),
            "nats_per_quarter": Value(
                per_token * own.voices * STEPS_PER_QUARTER, n_tokens // own.voices // STEPS_PER_QUARTER
            ),
        }


def music(model: AutoregressiveModel) -> Music:
    """The model's music.

    Raises InputError: it has none.
    """
    _, modality = reader(model.modalities, ".mid")
    if not isinstance(modality, Music):
        raise InputError(f"this score is about armm.modalities.Music, the model has {type(modality).__name__}")
    return modality
