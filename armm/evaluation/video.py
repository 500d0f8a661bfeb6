"""What the frames before are worth: bits of the pixels of clips, and of the same frames one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import numpy as np

from armm.datasets.files import reader
from armm.errors import InputError
from armm.evaluation.likelihood import payload_nats
from armm.evaluation.score import Material, Score, Value
from armm.modalities.video import Video
from armm.model import AutoregressiveModel


@dataclass(frozen=True)
class VideoBits(Score):
    """Bits a dimension of the test clips; of their later frames; and of every frame as a clip of its own.

    Attributes:
        n: at most so many clips; all by default.
    """

    n: int | None = None

    def check(self, model: AutoregressiveModel) -> None:
        video(model)

    def evaluate(self, model: AutoregressiveModel, data: Material) -> Mapping[str, Value]:
        own = video(model)
        clips: list[np.ndarray] = [item[own.name] for item in data.items("test", self.n)]
        stills = [clip[t : t + 1] for clip in clips for t in range(len(clip))]
        return {
            "bits_per_dim": self._bits(model, own, clips),
            "bits_per_dim_without_time": self._bits(model, own, stills),
        }

    @staticmethod
    def _bits(model: AutoregressiveModel, own: Video, clips: list[np.ndarray]) -> Value:
        nats, n = payload_nats(model, [[own.encode(clip)] for clip in clips])[own.name]
        return Value(nats / log(2) / max(n, 1), n)


def video(model: AutoregressiveModel) -> Video:
    """The model's clips.

    Raises InputError: it has none.
    """
    _, modality = reader(model.modalities, ".gif")
    if not isinstance(modality, Video):
        raise InputError(f"this score is about armm.modalities.Video, the model has {type(modality).__name__}")
    return modality
