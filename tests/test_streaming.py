"""Streams and stop strings: whole characters, rows and samples, as they come and never taken back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_modalities import hash_parameters

from armm.backbones import Transformer
from armm.generation import LogitBias, Piece, Sample, Temperature, generate, stream
from armm.generation.stops import longest_overlap
from armm.heads import CausalConv
from armm.modalities import Audio, Image, Label, Text
from armm.model import AutoregressiveModel

HEAD = CausalConv(channels=4, dilations=(1, 2), halo=1, halo_layers=0)


def build(layout: list[str] | None = None, **modalities: Any) -> AutoregressiveModel:
    model = AutoregressiveModel(modalities, Transformer(width=16, n_layers=1, n_heads=2), layout)
    hash_parameters(model, 2.0)
    return model.eval()


@pytest.fixture(scope="module")
def bytes_model() -> AutoregressiveModel:
    """Text of bytes, most of them of two-byte characters."""
    return build(["text"], text=Text(kind="bytes"))


GREEK = LogitBias([(symbol, 9.0) for symbol in (0xCE, *range(0xB1, 0xB8))])


def pieces(model: AutoregressiveModel, **options: Any) -> tuple[list[Piece], list[Sample]]:
    events = list(stream(model, **options))
    return [e for e in events if isinstance(e, Piece)], [e for e in events if isinstance(e, Sample)]


def joined(parts: list[Piece], sample: Sample) -> str:
    return "".join(p.data or "" for p in parts if (p.prompt, p.index) == (sample.prompt, sample.index))


def test_streamed_text_is_the_text(bytes_model: AutoregressiveModel) -> None:
    """Joined, the pieces are the sample; each is whole characters although a character is two bytes."""
    parts, samples = pieces(bytes_model, n=3, seed=1, filters=[GREEK], max_symbols=60)
    assert [s.symbols for s in samples] == [
        s.symbols for s in generate(bytes_model, n=3, seed=1, filters=[GREEK], max_symbols=60)
    ]
    for sample in samples:
        assert joined(parts, sample) == sample.decoded[0]
    shown = [p.data for p in parts if p.data]
    assert sum("α" <= c <= "η" for data in shown for c in data) > 10
    whole = [data for data in shown if not any("\udc80" <= c <= "\udcff" for c in data)]
    assert len(whole) > 10 and max(map(len, whole)) <= 2


def test_the_prompt_is_not_streamed(bytes_model: AutoregressiveModel) -> None:
    prompt = [bytes_model.modalities["text"].encode("αβγ")]
    parts, (sample,) = pieces(bytes_model, prompts=[prompt], max_symbols=20)
    assert "αβγ" + joined(parts, sample) == sample.decoded[0]


@pytest.mark.parametrize("kind", ["text", "letters in fours"])
def test_a_text_ends_before_a_stop_string(kind: str, bytes_model: AutoregressiveModel) -> None:
    """Across tokens and within a unit; the sample ends there, and what is streamed is what is kept."""
    model = bytes_model
    if kind != "text":
        model = build(["text"], text=Text(kind="bytes", unit_symbols=4, head=HEAD))
    letters = LogitBias([(symbol, 12.0) for symbol in b"abc"])
    free = list(generate(model, n=40, seed=2, filters=[letters], max_symbols=80))
    parts, samples = pieces(model, n=40, seed=2, filters=[letters], max_symbols=80, stops=["abc", "ca"])
    stopped = 0
    for whole, sample in zip(sorted(free, key=lambda s: s.index), sorted(samples, key=lambda s: s.index), strict=True):
        found = [place for stop in ("abc", "ca") if (place := whole.decoded[0].find(stop)) >= 0]
        expected = whole.decoded[0][: min(found)] if found else whole.decoded[0]
        assert sample.decoded[0] == expected == joined(parts, sample)
        assert sample.stop == ("stop" if found else "length")
        assert whole.symbols[: len(sample.symbols)] == sample.symbols and len(sample.log_probs) == len(sample.symbols)
        stopped += bool(found)
    assert stopped > 4


def test_a_stop_string_may_be_the_last_of_a_text() -> None:
    """Every text that codes its end ends with one of its symbols; whatever follows in the document is dropped."""
    free = build(text=Text(kind="bytes", ended=True, max_units=8), image=Image(size=(2, 2), levels=2))
    letters = LogitBias([(symbol, 20.0) for symbol in b"ab"], modality="text")
    with torch.no_grad():
        free.control_logits["begin_text"][-1] += 3
        free.decisions["text"].bias[1] -= 9  # type: ignore[index] # no empty texts
    parts, samples = pieces(free, n=40, seed=1, filters=[letters], stops=["b"], max_symbols=60)
    assert all("b" not in text for s in samples for text in s.decoded if isinstance(text, str))
    assert not any("b" in p.data for p in parts if isinstance(p.data, str))
    stopped = [s for s in samples if s.stop == "stop"]
    assert len(stopped) > 3 and all(s.document[-1].modality == "text" for s in stopped)


def test_a_stop_string_in_the_prompt_does_not_stop(bytes_model: AutoregressiveModel) -> None:
    """Nor does one that only ends in what is generated."""
    prompt = [bytes_model.modalities["text"].encode("abca")]
    only_b = LogitBias([(ord("b"), 30.0)])
    (sample,) = generate(bytes_model, [prompt], filters=[only_b], stops=["ab"], max_symbols=5)
    assert (sample.decoded[0], sample.stop) == ("abcabbbbb", "length")


def test_what_may_become_a_stop_string_is_held_back() -> None:
    assert [longest_overlap(text, "stop") for text in ("", "s", "xst", "sto", "stop", "ss", "sts")] == [
        0,
        1,
        2,
        3,
        0,
        1,
        1,
    ]


def test_rows_of_images_come_one_by_one() -> None:
    model = build(["image"], image=Image(size=(4, 6), levels=3, head=HEAD))
    parts, (sample,) = pieces(model, seed=3)
    assert [p.data.shape for p in parts] == [(1, 6)] * 4
    np.testing.assert_array_equal(np.concatenate([p.data for p in parts]), sample.decoded[0])
    top = [model.modalities["image"].encode_prompt(sample.decoded[0][:2])]
    below, (again,) = pieces(model, prompts=[top], seed=3)
    assert len(below) == 2 and again.symbols == sample.symbols


def test_patches_come_by_rows_of_patches() -> None:
    model = build(["image"], image=Image(size=(4, 6), block=(2, 2), levels=3, head=HEAD))
    parts, (sample,) = pieces(model, seed=3)
    shown = [p.data for p in parts if p.data is not None]
    assert [data.shape for data in shown] == [(2, 6)] * 2 and len(parts) == 6
    np.testing.assert_array_equal(np.concatenate(shown), sample.decoded[0])


def test_sound_comes_in_frames() -> None:
    model = build(["audio"], audio=Audio(frame=8, max_units=5, head=HEAD))
    parts, samples = pieces(model, n=4, seed=1)
    for sample in samples:
        own = [p.data for p in parts if p.index == sample.index and p.data is not None]
        found = np.concatenate(own) if own else np.zeros(0, np.float32)
        np.testing.assert_array_equal(found, sample.decoded[0])
        assert all(len(data) <= 8 for data in own)


def test_documents_stream_segment_by_segment() -> None:
    model = build(text=Text(kind="bytes", ended=True, max_units=6), label=Label(3), image=Image(size=(2, 2), levels=2))
    with torch.no_grad():
        model.control_logits["end"][-1] -= 1
    parts, samples = pieces(model, n=6, seed=4)
    for sample in samples:
        own = [p for p in parts if p.index == sample.index]
        assert [symbol for p in own for symbol in p.symbols] == sample.symbols
        for number, segment in enumerate(sample.document):
            shown = [p for p in own if p.segment == number and p.data is not None]
            assert all(p.modality == segment.modality for p in shown)
            if segment.modality == "text":
                assert "".join(p.data for p in shown) == sample.decoded[number]
            if segment.modality == "image" and sample.stop == "end":
                np.testing.assert_array_equal(np.concatenate([p.data for p in shown]), sample.decoded[number])


def test_samples_come_interleaved(bytes_model: AutoregressiveModel) -> None:
    """Both are shown as they are drawn, not one after the other."""
    parts, _ = pieces(bytes_model, n=2, max_symbols=10, filters=[Temperature(0.5)])
    order = [p.index for p in parts]
    assert order[:4] in ([0, 1, 0, 1], [1, 0, 1, 0])
