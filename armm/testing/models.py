"""Tiny models for the laws: built around a modality, with random weights everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from armm.backbones import BackboneConfig, NoBackbone, Transformer
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.sequence import Segment

# small, and with everything a transformer can have
BACKBONE = Transformer(
    width=16,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    window=5,
    mlp_width=32,
    value_embeddings=True,
    residual_scalars=True,
)


@dataclass(frozen=True)
class Letters(Modality):
    """Words over a, b and c: what stands beside a modality in the free documents that it is tested in."""

    name: str = "letters"

    vocab = 3
    ended = True
    max_units = 3

    def encode(self, raw: str) -> Segment:
        return Segment(self.name, torch.tensor(["abc".index(letter) for letter in raw], dtype=torch.int64).view(-1, 1))

    def decode(self, segment: Segment) -> str:
        return "".join("abc"[symbol] for symbol in segment.flat())


def tiny_model(
    modalities: Mapping[str, Modality],
    backbone: BackboneConfig = BACKBONE,
    layout: Sequence[str] | None = None,
    context: int | None = None,
    seed: int = 0,
) -> AutoregressiveModel:
    """A model with random weights, evaluated, not trained; torch's own generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoregressiveModel(modalities, backbone, layout, context)
    return randomised(model, seed).eval()


def randomised(model: AutoregressiveModel, seed: int = 0) -> AutoregressiveModel:
    """The model with noise on every parameter: in a new one many are zero, and hide what is behind them."""
    generator = torch.Generator().manual_seed(seed)

    def noise(parameter: nn.Parameter) -> Tensor:
        fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
        return torch.randn(parameter.shape, generator=generator) * 0.2 / max(1.0, sqrt(fan_in) / 4)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise(parameter).to(parameter))
    return model


def models_around(modality: Modality) -> dict[str, AutoregressiveModel]:
    """Tiny models that a modality has to work in, by description."""
    other = Letters("words" if modality.name == "letters" else "letters")
    alone = {modality.name: modality}
    both = {other.name: other, modality.name: modality}
    models = {
        "with a transformer": tiny_model(alone, BACKBONE, [modality.name]),
        "without a backbone": tiny_model(alone, NoBackbone(), [modality.name]),
        "after another modality": tiny_model(both, BACKBONE, [other.name, modality.name]),
    }
    if ends(modality):
        models["in free documents"] = tiny_model(both, BACKBONE)
    return models


def ends(modality: Modality) -> bool:
    """Whether anything can follow a segment: its end is coded, or its header tells."""
    return modality.ended or modality.n_units(modality.header((0,) * len(modality.header_sizes))) is not None
