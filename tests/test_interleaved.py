"""One model of documents `text, image, audio, text`: trained, scored in exact joint bits, sampled and prompted."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from armm.backbones import Transformer
from armm.batching import collate
from armm.generation import Temperature, generate
from armm.heads import CausalConv
from armm.modalities import Audio, Image, Text
from armm.model import AutoregressiveModel
from armm.sequence import Document

ORDER = ["text", "image", "audio", "text"]
MODALITIES = {
    "text": Text("bytes", ended=True),
    "image": Image(size=(4, 4), levels=4, head=CausalConv(channels=8, dilations=(1, 2))),
    "audio": Audio(frame=4, levels=16, head=CausalConv(channels=8, dilations=(1, 2))),
}
# what is said first tells what is seen and heard
WORDS = {"up": 1, "down": -1}
N_STEPS, RATE = 90, 2e-2


def document(word: str, generator: np.random.Generator) -> Document:
    """A word, a picture of a slope, a chirp of 6 to 9 samples, and the word backwards."""
    slope = np.arange(4, dtype=np.uint8)[:: WORDS[word], None].repeat(4, axis=1)
    n_samples = int(generator.integers(6, 10))
    chirp = np.linspace(-WORDS[word], WORDS[word], n_samples, dtype=np.float32)
    text, image, audio = MODALITIES.values()
    return [text.encode(word), image.encode(slope), audio.encode(chirp), text.encode(word[::-1])]


def new_model() -> AutoregressiveModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoregressiveModel(MODALITIES, Transformer(width=32, n_layers=2, n_heads=2))


def nats(model: AutoregressiveModel, documents: list[Document]) -> torch.Tensor:
    batch = collate(documents, model.grammar)
    payload, structure = model.log_prob(batch).scored(batch)
    return (payload + structure) / len(documents)


@pytest.fixture(scope="module")
def trained() -> tuple[AutoregressiveModel, list[float]]:
    """The model after some steps of AdamW, and the nats a document of every step."""
    model, generator = new_model(), np.random.default_rng(0)
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for step in range(N_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (1 - step / N_STEPS))
        loss = nats(model, [document(word, generator) for word in list(WORDS) * 6])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return model.eval(), losses


def test_loss_falls_to_near_the_entropy_of_the_documents(trained: tuple[AutoregressiveModel, list[float]]) -> None:
    """Only the word and the length are left to chance: ln 2 + ln 4 nats; an untrained model needs ninety."""
    _, losses = trained
    assert losses[0] > 80
    entropy = float(np.log(len(WORDS)) + np.log(4))
    assert entropy * 0.9 < float(np.mean(losses[-5:])) < entropy + 1.0


def test_every_module_is_trained_by_its_part_of_the_document() -> None:
    """Each embedder, head and structure table gets a gradient from one interleaved document."""
    model = new_model()
    with torch.no_grad():
        for parameter in model.parameters():  # away from the zeros that a new model starts at
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    nats(model, [document("up", np.random.default_rng(0))]).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == ["control_embeddings.end"]


def test_structure_is_learnt(trained: tuple[AutoregressiveModel, list[float]]) -> None:
    """Greedy, and nearly always by chance, a document is text, image, audio, text, and each part can be decoded."""
    model, _ = trained
    (greedy,) = generate(model, filters=[Temperature(0)], max_symbols=200)
    assert [segment.modality for segment in greedy.document] == ORDER and greedy.stop == "end"
    samples = list(generate(model, n=32, seed=3, max_symbols=200))
    ordered = [s for s in samples if [segment.modality for segment in s.document] == ORDER and s.stop == "end"]
    assert len(ordered) >= 28
    words, fitting = [], 0
    for sample in ordered:
        word, image, audio, back = (MODALITIES[s.modality].decode(s) for s in sample.document)
        words.append(word)
        if word in WORDS:
            slope = np.sign(float(image[-1].mean()) - float(image[0].mean()))
            fitting += slope == WORDS[word] == np.sign(audio[-1] - audio[0]) and back == word[::-1]
    assert set(WORDS) <= set(words)
    assert fitting >= 24


@pytest.mark.parametrize("word", WORDS)
def test_a_text_prompt_decides_what_is_seen_and_heard(
    trained: tuple[AutoregressiveModel, list[float]], word: str
) -> None:
    """The image and the audio follow from the text before them, across modalities."""
    model, _ = trained
    _, image, audio = MODALITIES.values()
    said, seen, heard, _ = document(word, np.random.default_rng(0))
    begun = [said, seen.window(0, 0)]  # the text is complete, of the image nothing is there
    (sample,) = generate(model, prompts=[begun], filters=[Temperature(0)], max_symbols=200)
    assert sample.symbols[: sample.n_prompt] == [*model.grammar.flatten([said])[:-1], 2]
    assert [segment.modality for segment in sample.document] == ORDER
    decoded = [model.modalities[segment.modality].decode(segment) for segment in sample.document]
    assert decoded[0] == word and decoded[3] == word[::-1]
    assert np.array_equal(decoded[1], image.decode(seen))
    assert np.allclose(decoded[2][[0, -1]], audio.decode(heard)[[0, -1]], atol=0.2)


def test_joint_bits_are_exact(trained: tuple[AutoregressiveModel, list[float]]) -> None:
    """Payload and structure, in parallel, symbol by symbol, and as generated, are the same number of nats."""
    model, _ = trained
    generator = np.random.default_rng(7)
    documents = [document(word, generator) for word in WORDS]
    batch = collate(documents, model.grammar)
    with torch.no_grad():
        payload, structure = model.log_prob(batch).scored(batch)
        alone = [-model.stream_log_prob(own).sum() for own in documents]
    assert float(payload + structure) == pytest.approx(float(sum(alone)), rel=1e-5)
    assert 0 < float(structure) < float(payload + structure)
    state = model.state(len(documents))
    streams = [model.grammar.flatten(own) for own in documents]
    stepped, logits = 0.0, state.extend([[] for _ in documents])
    for t in range(max(map(len, streams))):
        for row, stream in enumerate(streams):
            if t < len(stream):
                stepped -= float(logits[row].log_softmax(-1)[stream[t]])
        logits = state.extend([stream[t : t + 1] for stream in streams])
    assert state.done == [True, True]
    assert stepped == pytest.approx(float(payload + structure), rel=1e-4)
    for sample in islice(generate(model, n=4, seed=5, max_symbols=200), 4):
        if sample.stop == "end":
            with torch.no_grad():
                assert sum(sample.log_probs) == pytest.approx(
                    float(model.stream_log_prob(sample.document).sum()), rel=1e-4
                )
