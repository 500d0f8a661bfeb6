"""ARMM: text, images, audio and whatever is plugged in, as one stream of symbols with an exact likelihood.

The names below are imported when they are first used, so that `armm --help` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from armm.backbones import NoBackbone, Transformer
    from armm.bundle import load, save
    from armm.errors import InputError
    from armm.generation import Sample, Temperature, TopK, TopP, beam_search, generate, stream
    from armm.heads import Categorical, CausalConv, JointSoftmax, LogisticMixture, Softmax
    from armm.modality import Modality
    from armm.model import AutoregressiveModel
    from armm.sequence import Document, Segment

__all__ = [
    "AutoregressiveModel",
    "Categorical",
    "CausalConv",
    "Document",
    "InputError",
    "JointSoftmax",
    "LogisticMixture",
    "Modality",
    "NoBackbone",
    "Sample",
    "Segment",
    "Softmax",
    "Temperature",
    "TopK",
    "TopP",
    "Transformer",
    "beam_search",
    "generate",
    "load",
    "save",
    "stream",
]

_HOMES = {
    "armm.backbones": ("NoBackbone", "Transformer"),
    "armm.bundle": ("load", "save"),
    "armm.errors": ("InputError",),
    "armm.generation": ("Sample", "Temperature", "TopK", "TopP", "beam_search", "generate", "stream"),
    "armm.heads": ("Categorical", "CausalConv", "JointSoftmax", "LogisticMixture", "Softmax"),
    "armm.modality": ("Modality",),
    "armm.model": ("AutoregressiveModel",),
    "armm.sequence": ("Document", "Segment"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'armm' has no attribute {name!r}")
