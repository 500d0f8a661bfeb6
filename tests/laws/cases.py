"""What the laws are checked on: every modality and head, in tiny sizes, and the backbones to put them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from armm.backbones import BackboneConfig, NoBackbone, Recycle, Transformer
from armm.heads import (
    Categorical,
    CausalConv,
    Copying,
    DiagonalBiLSTM,
    GatedPixelCNN,
    JointSoftmax,
    LogisticMixture,
    PixelCNN,
    RowLSTM,
    Softmax,
)
from armm.modalities import Audio, Image, Label, Music, Protein, Text, Video
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.testing import random_document, tiny_model

BACKBONES: dict[str, BackboneConfig] = {
    "none": NoBackbone(),
    "conditions": NoBackbone(width=8, conditions=2),
    "small": Transformer(
        width=16, n_layers=3, n_heads=2, window=4, mlp_width=24, value_embeddings=True, residual_scalars=True
    ),
    "gpt2": Transformer(
        width=16, n_layers=2, n_heads=2, mlp_width=24, position="learned", max_positions=64, norm="layer",
        norm_gain=True, mlp="gelu", bias=True, qk_norm=False, dropout=0.1,
    ),
    "llama": Transformer(
        width=16, n_layers=2, n_heads=4, n_kv_heads=2, mlp_width=24, norm_gain=True, mlp="swiglu", qk_norm=False
    ),
    "recycled": Transformer(
        width=8, n_layers=1, n_heads=2, window=4, mlp_width=16, value_embeddings=True, recycle=Recycle(3, 1)
    ),
    "softcap": Transformer(width=8, n_layers=2, n_heads=2, n_kv_heads=1, mlp_width=16, attention_softcap=3.0),
}  # fmt: skip

CONV = CausalConv(channels=4, kernel=2, dilations=(1, 2), halo=2, halo_layers=1, dropout=0.1)
LAYERED = CausalConv(channels=4, kernel=2, dilations=(1, 2), halo=1, halo_layers=0, condition_layers=2)
WAVE = CausalConv(channels=4, kernel=3, dilations=(1, 4), hidden_layers=2)
CLASSICS = {
    "PixelCNN": PixelCNN(channels=3, n_layers=2, first=5),
    "Gated PixelCNN": GatedPixelCNN(channels=3, n_layers=2, first=5, dropout=0.1),
    "Row LSTM": RowLSTM(channels=3, n_layers=2, first=3),
    "Diagonal BiLSTM": DiagonalBiLSTM(channels=3, n_layers=2, first=3),
}
PLUS = GatedPixelCNN(channels=3, n_layers=1, first=3, distribution=LogisticMixture(2))
COPYING = GatedPixelCNN(channels=3, n_layers=1, first=3, distribution=Copying(rows=2, columns=2))
JOINT = CausalConv(channels=4, kernel=2, dilations=(1, 2), halo=2, distribution=JointSoftmax())
MIXTURE = CausalConv(channels=4, kernel=2, dilations=(1, 2), halo=2, distribution=LogisticMixture(2))


@dataclass(frozen=True)
class Case:
    """Modalities in a layout, and how long their random documents are.

    Attributes:
        modalities: by name. layout: None for free documents.
        n_symbols: of the longer documents; of those that have no length of their own, more or less.
    """

    modalities: dict[str, Callable[[], Modality]]
    layout: tuple[str, ...] | None
    n_symbols: int = 12

    def model(self, backbone: str = "small") -> AutoregressiveModel:
        config = BACKBONES[backbone]
        context = 64 if isinstance(config, Transformer) and config.position == "learned" else None
        return tiny_model({name: make() for name, make in self.modalities.items()}, config, self.layout, context)

    def documents(self, model: AutoregressiveModel, seed: int = 5) -> list[Document]:
        """Three, of different length where the grammar leaves that open; the last is the longest asked for."""
        generator = torch.Generator().manual_seed(seed)
        lengths = (2, self.n_symbols // 2, self.n_symbols)
        return [random_document(model.grammar, generator, n) for n in lengths]


def chars(alphabet: str, unit_symbols: int = 1, ended: bool = False, max_units: int | None = None) -> Text:
    head = CONV if unit_symbols > 1 else None
    text = Text("chars", unit_symbols=unit_symbols, ended=ended, max_units=max_units, head=head).fit([alphabet])
    assert isinstance(text, Text)
    return text


def alone(name: str, make: Callable[[], Modality], n_symbols: int = 12) -> Case:
    return Case({name: make}, (name,), n_symbols)


TEXT = {"text": lambda: Text("bytes", ended=True)}
IMAGE = {"image": lambda: Image(size=(3, 4), levels=4, head=CONV)}
AUDIO = {"audio": lambda: Audio(frame=4, levels=16, head=WAVE)}
LABEL = {"label": lambda: Label(n_classes=5)}

# laws 3 to 5: the real alphabets where they are not too slow
CASES: dict[str, Case] = {
    "text bytes": alone("text", lambda: Text("bytes")),
    "text bytes, capped logits, tied": alone("text", lambda: Text("bytes", head=Categorical(softcap=5.0, tied=True))),
    "text bytes in fours": alone("text", lambda: Text("bytes", unit_symbols=4, ended=True, head=CONV), 15),
    "image rows": alone("image", lambda: Image(size=(4, 4), levels=17, head=CONV)),
    "image rows without halo": alone("image", lambda: Image(size=(3, 4), levels=3, head=CausalConv(4, halo=0))),
    "image RGB rows": alone("image", lambda: Image(size=(3, 3), channels=3, levels=8, head=CONV)),
    "image RGB rows, mixture": alone("image", lambda: Image(size=(3, 3), channels=3, head=MIXTURE)),
    "image rows, conditioned by layers": alone(
        "image", lambda: Image(size=(4, 4), levels=3, embedder_channels=3, head=LAYERED)
    ),
    "image patches, conditioned by layers": alone(
        "image", lambda: Image(size=(4, 4), levels=4, block=(2, 2), embedder_channels=3, head=LAYERED)
    ),
    "image patches": alone("image", lambda: Image(size=(4, 6), levels=4, block=(2, 2), head=CONV)),
    "image RGB patches, mixture": alone(
        "image", lambda: Image(size=(4, 4), channels=3, levels=32, block=(2, 2), head=MIXTURE)
    ),
    "image pixels": alone("image", lambda: Image(size=(3, 4), levels=5, block=(1, 1))),
    "image RGB pixels": alone("image", lambda: Image(size=(2, 3), channels=3, levels=5, block=(1, 1), head=CONV)),
    "image strips": alone("image", lambda: Image(size=(3, 6), levels=4, block=(1, 2), head=CONV)),
    "image of any size": alone("image", lambda: Image(max_size=(6, 8), levels=4, block=(2, 2), head=CONV)),
    "image rows, pixels in pairs": alone(
        "image", lambda: Image(size=(3, 6), levels=3, place=(1, 2), embedder_channels=3, head=LAYERED)
    ),
    "image rows, pixels in fours, joint": alone(
        "image", lambda: Image(size=(4, 4), levels=3, place=(2, 2), head=JOINT)
    ),
    "image RGB rows, pixels in fours": alone(
        "image", lambda: Image(size=(4, 4), channels=3, levels=4, place=(2, 2), head=CONV)
    ),
    "image patches of any size, pixels in pairs": alone(
        "image", lambda: Image(max_size=(4, 8), levels=4, block=(2, 4), place=(2, 1), head=CONV)
    ),
    "image rows, pixels in pairs, Gated PixelCNN": alone(
        "image", lambda: Image(size=(3, 6), levels=3, place=(1, 2), head=CLASSICS["Gated PixelCNN"])
    ),
    **{
        f"image rows, {name}": alone("image", lambda head=head: Image(size=(4, 4), levels=4, head=head))
        for name, head in CLASSICS.items()
    },
    "image RGB rows, PixelCNN++": alone("image", lambda: Image(size=(3, 3), channels=3, levels=8, head=PLUS)),
    "image RGB rows, copies": alone("image", lambda: Image(size=(4, 3), channels=3, levels=3, head=COPYING)),
    "image RGB rows, Diagonal BiLSTM": alone(
        "image", lambda: Image(size=(3, 2), channels=3, levels=3, head=CLASSICS["Diagonal BiLSTM"])
    ),
    "audio": alone("audio", lambda: Audio(frame=4, head=WAVE), 23),
    "audio, conditioned by layers": alone("audio", lambda: Audio(frame=4, levels=16, head=LAYERED), 23),
    "audio, mixture": alone(
        "audio", lambda: Audio(frame=3, head=CausalConv(4, kernel=2, dilations=(1, 2), distribution=LogisticMixture(2)))
    ),
    "audio, heard as its spectrum": alone(
        "audio", lambda: Audio(frame=16, levels=16, heard_as="spectrum", head=WAVE), 45
    ),
    "music": alone("music", lambda: Music(head=WAVE), 23),
    "music, holds and meters": alone(
        "music", lambda: Music(voices=2, lowest=60, highest=66, holds=True, meters=("4/4", "3/8"), head=WAVE)
    ),
    "protein": alone("protein", lambda: Protein()),
    "video": alone("video", lambda: Video(size=(3, 4), max_frames=4, levels=4, head=CONV), 40),
    "label, image": Case({**LABEL, **IMAGE}, ("label", "image")),
    "free documents": Case({**TEXT, **IMAGE, **AUDIO, **LABEL}, None, 36),
}

# laws 2 and 6: alphabets so small that all documents, or nearly all, can be listed
COUNTABLE: dict[str, Case] = {
    "text": alone("text", lambda: chars("abc", ended=True, max_units=3)),
    "text that nothing ends": alone("text", lambda: chars("abc")),
    "text in threes": alone("text", lambda: chars("ab", unit_symbols=3, ended=True, max_units=2)),
    "image rows": alone("image", lambda: Image(size=(3, 3), levels=2, head=CONV)),
    "image RGB rows": alone("image", lambda: Image(size=(2, 1), channels=3, levels=3, head=CONV)),
    "image RGB rows, mixture": alone("image", lambda: Image(size=(1, 2), channels=3, levels=3, head=MIXTURE)),
    "image rows of 4 levels, mixture": alone("image", lambda: Image(size=(2, 2), levels=4, head=MIXTURE)),
    **{
        f"image rows, {name}": alone("image", lambda head=head: Image(size=(3, 3), levels=2, head=head))
        for name, head in CLASSICS.items()
    },
    "image RGB rows, PixelCNN++": alone("image", lambda: Image(size=(1, 2), channels=3, levels=3, head=PLUS)),
    "image rows, copies": alone("image", lambda: Image(size=(3, 2), levels=3, head=COPYING)),
    "image RGB rows, copies": alone("image", lambda: Image(size=(3, 1), channels=3, levels=2, head=COPYING)),
    "image patches": alone("image", lambda: Image(size=(2, 4), levels=2, block=(2, 2), head=CONV)),
    "image pixels": alone("image", lambda: Image(size=(2, 3), levels=3, block=(1, 1))),
    "image strips": alone("image", lambda: Image(size=(2, 4), levels=2, block=(1, 2), head=CONV)),
    "image of any size": alone("image", lambda: Image(max_size=(2, 3), levels=2, block=(1, 1))),
    "image rows, pixels in fours": alone("image", lambda: Image(size=(2, 4), levels=2, place=(2, 2), head=CONV)),
    "image rows, pixels in pairs": alone("image", lambda: Image(size=(2, 4), levels=2, place=(1, 2), head=JOINT)),
    "audio": alone("audio", lambda: Audio(frame=2, levels=3, max_units=3, head=WAVE)),
    "music": alone("music", lambda: Music(voices=2, lowest=60, highest=60, max_units=3, head=WAVE)),
    "video": alone("video", lambda: Video(size=(1, 2), max_frames=3, levels=2, head=CONV)),
    "label, image": Case(
        {"label": lambda: Label(n_classes=3), "image": lambda: Image(size=(2, 2), levels=3, head=CONV)},
        ("label", "image"),
    ),
    "free documents": Case(
        {
            "text": lambda: chars("ab", ended=True),
            "image": lambda: Image(size=(1, 2), levels=2, head=CausalConv(4, distribution=Softmax(softcap=2.0))),
        },
        None,
    ),
}
