"""Exact symbols and log-probabilities of tiny models, pinned: a change of these numbers breaks every trained model.

Parameters and documents come from an integer hash, not from torch's generator. `models.json` holds, for each model, a
document's nats by the parallel view, and a sample (the best, second or third best symbol in turn, and no early end)
with its nats by the stepwise view. After a change that is meant to alter what trained models say, write the file anew,
and say so in CHANGELOG.md:

    PYTHONPATH=tests python tests/golden/test_golden.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_modalities import Clip, Letters, Picture, hash_parameters, hash_symbols, segment_of

from armm.backbones import NoBackbone, Recycle, Transformer
from armm.grammar import Stage
from armm.heads import (
    Categorical,
    CausalConv,
    DiagonalBiLSTM,
    GatedPixelCNN,
    LogisticMixture,
    PixelCNN,
    RowLSTM,
    Softmax,
)
from armm.model import AutoregressiveModel
from armm.sequence import Document

FILE = Path(__file__).with_name("models.json")
TOLERANCE = 1e-5
N_SAMPLED = 40

SMALL = Transformer(width=16, n_layers=2, n_heads=4)
PICTURE = {"size": (4, 6), "vocab": 9}


def letters(n: int) -> Document:
    return [segment_of("letters", hash_symbols(n, 6), 1)]


def clip(n: int) -> Document:
    return [segment_of("clip", hash_symbols(n, 16), 4)]


def picture(modality: Picture) -> Document:
    rows, columns = modality.grid
    n = rows * columns * modality.unit_symbols
    return [segment_of("picture", hash_symbols(n, modality.vocab), modality.unit_symbols, modality.grid)]


def pictures(modality: Picture, backbone: Any = SMALL) -> tuple[AutoregressiveModel, Document]:
    return AutoregressiveModel({"picture": modality}, backbone, ["picture"]), picture(modality)


def free() -> tuple[AutoregressiveModel, Document]:
    modalities = {
        "letters": Letters(max_units=8),
        "picture": Picture(**PICTURE, block=(2, 2), sizes_differ=True),
        "clip": Clip(vocab=16, unit_symbols=4),
    }
    document = [
        *letters(3),
        segment_of("picture", hash_symbols(8, 9), 4, (1, 2)),
        *clip(6),
        *letters(0),
    ]
    return AutoregressiveModel(modalities, SMALL, context=20), document


WAVENET = CausalConv(channels=6, kernel=4, dilations=(1, 4), hidden_layers=2)
WAVE = Clip(vocab=16, unit_symbols=4, head=WAVENET)
CASES: dict[str, Callable[[], tuple[AutoregressiveModel, Document]]] = {
    "transformer, softmax": lambda: (AutoregressiveModel({"letters": Letters()}, SMALL, ["letters"]), letters(20)),
    "transformer with every option": lambda: (
        AutoregressiveModel(
            {"letters": Letters(ended=False, head=Categorical(softcap=5.0, tied=True))},
            Transformer(
                width=16,
                n_layers=3,
                n_heads=4,
                n_kv_heads=2,
                norm_gain=True,
                mlp="swiglu",
                window=6,
                attention_softcap=4.0,
                value_embeddings=True,
                residual_scalars=True,
            ),
            ["letters"],
        ),
        letters(20),
    ),
    "gpt-2 block": lambda: (
        AutoregressiveModel(
            {"letters": Letters(ended=False)},
            Transformer(
                width=16,
                n_layers=2,
                n_heads=4,
                position="learned",
                max_positions=64,
                norm="layer",
                norm_gain=True,
                mlp="gelu",
                bias=True,
                qk_norm=False,
            ),
            ["letters"],
            context=64,
        ),
        letters(20),
    ),
    "audio frames": lambda: (AutoregressiveModel({"clip": WAVE}, SMALL, ["clip"]), clip(30)),
    "wavenet": lambda: (AutoregressiveModel({"clip": WAVE}, NoBackbone(), ["clip"]), clip(30)),
    "image rows": lambda: pictures(Picture(**PICTURE, block=(1, 6), head=CausalConv(channels=6))),
    "image patches": lambda: pictures(Picture(**PICTURE, block=(2, 3), head=CausalConv(channels=6, halo=2))),
    "image pixels": lambda: pictures(Picture(**PICTURE, block=(1, 1), head=Categorical())),
    "rgb rows, softmax": lambda: pictures(
        Picture(**PICTURE, block=(1, 6), symbol_channels=3, head=CausalConv(channels=6, distribution=Softmax()))
    ),
    "rgb rows, mixture": lambda: pictures(
        Picture(
            size=(3, 4), block=(1, 4), vocab=64, symbol_channels=3, head=CausalConv(6, distribution=LogisticMixture(3))
        )
    ),
    "recycled": lambda: (
        AutoregressiveModel(
            {"letters": Letters()}, Transformer(width=16, n_layers=1, n_heads=4, recycle=Recycle(3, 2)), ["letters"]
        ),
        letters(20),
    ),
    "told by the first unit": lambda: (
        AutoregressiveModel(
            {"letters": Letters(max_units=3), "clip": WAVE}, NoBackbone(width=8, conditions=3), ["letters", "clip"]
        ),
        letters(3) + clip(30),
    ),
    **{
        name: lambda head=head: pictures(Picture(**PICTURE, block=(1, 6), head=head), NoBackbone())
        for name, head in {
            "pixelcnn": PixelCNN(channels=4, n_layers=2, first=5),
            "gated pixelcnn": GatedPixelCNN(channels=4, n_layers=2, first=5),
            "row lstm": RowLSTM(channels=4, n_layers=2, first=3),
            "diagonal bilstm": DiagonalBiLSTM(channels=4, n_layers=2, first=3),
        }.items()
    },
    "free document": free,
}


def compute(case: str) -> dict[str, list[int] | list[float]]:
    """What the file holds of a model."""
    model, document = CASES[case]()
    hash_parameters(model)
    model.eval()
    with torch.no_grad():
        nats = model.stream_log_prob(document)
    symbols: list[int] = []
    sampled: list[float] = []
    state = model.state()
    logits = state.extend([[]])[0]
    for step in range(N_SAMPLED):
        if state.done[0]:
            break
        order = logits.argsort(descending=True)
        possible = int(logits.isfinite().sum())
        rank = min(step * step % 3, possible - 1)
        if state.cursors[0].stage == Stage.DECISION and step < N_SAMPLED - 10:
            rank = order.tolist().index(0)  # more follows
        for other in {max(rank - 1, 0), min(rank + 1, possible - 1)} - {rank}:
            margin = abs(float(logits[order[rank]] - logits[order[other]]))
            assert margin > 10 * TOLERANCE, f"{case}: rounding could change symbol {step}; use another seed"
        symbols.append(int(order[rank]))
        sampled.append(float(logits.log_softmax(-1)[symbols[-1]]))
        logits = state.extend([symbols[-1:]])[0]
    return {
        "log_prob": [round(value, 7) for value in nats.tolist()],
        "symbols": symbols,
        "symbols_log_prob": [round(value, 7) for value in sampled],
    }


@pytest.mark.parametrize("case", CASES)
def test_model_says_what_it_always_said(case: str) -> None:
    found, expected = compute(case), json.loads(FILE.read_text(encoding="utf-8"))[case]
    assert found["symbols"] == expected["symbols"]
    assert found["log_prob"] == pytest.approx(expected["log_prob"], abs=TOLERANCE)
    assert found["symbols_log_prob"] == pytest.approx(expected["symbols_log_prob"], abs=TOLERANCE)


def test_pinned_models_are_these() -> None:
    assert set(json.loads(FILE.read_text(encoding="utf-8"))) == set(CASES)


def test_a_nudged_parameter_is_seen() -> None:
    """The tolerance is small enough: one weight of 0.5 changed by 0.001 shows."""
    model, document = CASES["audio frames"]()
    hash_parameters(model)
    with torch.no_grad():
        next(iter(model.heads["clip"].parameters()))[0, 1, 0] += 1e-3
        found = model.eval().stream_log_prob(document).tolist()
    assert found != pytest.approx(
        json.loads(FILE.read_text(encoding="utf-8"))["audio frames"]["log_prob"], abs=TOLERANCE
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    lines = [f"{json.dumps(case)}: {json.dumps(compute(case))}" for case in CASES]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"wrote {FILE.name}: {len(lines)} models")
