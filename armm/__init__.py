"""ARMM: text, images, audio and whatever is plugged in, as one stream of symbols with an exact likelihood."""

from armm.backbones import NoBackbone, Transformer
from armm.bundle import load, save
from armm.errors import InputError
from armm.generation import Sample, generate, temperature, top_k, top_p
from armm.heads import Categorical, CausalConv, LogisticMixture, Softmax
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.sequence import Document, Segment

__all__ = [
    "AutoregressiveModel",
    "Categorical",
    "CausalConv",
    "Document",
    "InputError",
    "LogisticMixture",
    "Modality",
    "NoBackbone",
    "Sample",
    "Segment",
    "Softmax",
    "Transformer",
    "generate",
    "load",
    "save",
    "temperature",
    "top_k",
    "top_p",
]
