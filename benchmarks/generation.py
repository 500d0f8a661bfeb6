"""How fast we generate, beside others on the same weights: `python benchmarks/generation.py --only text_b1_int8`.

Prints a table as it goes and one JSON object as its last line. What each work is and who the peers are: README.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from peers import contest, llama, llama_gguf, naive, wavenet
from peers.contest import Contender, Contest, Setting

from armm.backbones import BackboneConfig, NoBackbone, Transformer
from armm.commands import machine
from armm.errors import InputError
from armm.exactness import rows_needed
from armm.generation import Filter, NGram, Sample, Temperature, generate
from armm.heads import CausalConv, LogisticMixture
from armm.heads.causal_conv import CausalConvHead
from armm.memory import keep_freed_memory
from armm.modalities import Audio, Image
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.prepacking import prepack
from armm.quantization import quantise
from armm.testing.models import randomised

Precision = Literal["fp32", "bf16", "int8", "int4"]

REAL_TIME = ("real time 8 kHz", 8000.0)
FRAME = 64
WAVENET = CausalConv(kernel=2, channels=64, skip=256, dilations=tuple(2**i for i in range(10)) * 3, hidden_layers=2)
AUDIO = CausalConv(kernel=4, dilations=(1, 4, 16, 64), channels=48, skip=96, condition=32, hidden_layers=2)
RGB = CausalConv(
    channels=96, dilations=(1, 2, 4, 1, 2, 4), halo_layers=4, distribution=LogisticMixture(n_components=10)
)


@dataclass(frozen=True)
class Request:
    """What is asked of the engine.

    Attributes:
        model: which model.
        n_symbols: new symbols of every sample, end decisions included.
        prompts: token ids to begin with, a sample each; none for `n` samples from nothing.
        filters, fast, proposer: as `generate` takes them.
    """

    model: AutoregressiveModel
    n_symbols: int
    prompts: tuple[tuple[int, ...], ...] = ()
    n: int = 1
    filters: tuple[Filter, ...] = ()
    fast: bool | None = None
    proposer: NGram | None = None

    @property
    def packed(self) -> bool:
        """Whether exactness costs next to nothing: packed products do not depend on the number of rows, from two on."""
        return rows_needed(self.model.backbone) <= 2 and all(
            rows_needed(head) <= 2 for head in self.model.heads.values()
        )

    def draw(self, exact: bool | None = None, n_symbols: int | None = None) -> list[Sample]:
        """The samples, all side by side, in the order of their prompts and numbers."""
        prompts = [[self.model.modalities["text"].encode(prompt)] for prompt in self.prompts]
        samples = generate(
            self.model,
            prompts or None,
            n=1 if prompts else self.n,
            filters=self.filters,
            max_symbols=n_symbols or self.n_symbols,
            batch_size=len(prompts) or self.n,
            exact=self.packed if exact is None else exact,
            fast=self.fast,
            proposer=self.proposer,
        )
        return sorted(samples, key=lambda sample: (sample.prompt, sample.index))


@dataclass(frozen=True)
class Ours:
    """Our part of a contest, measured as far as it has to be before there are peers."""

    request: Request
    samples: list[Sample]
    peak_memory: int

    def contest(
        self,
        unit: str,
        amount: float,
        short: int,
        peers: Sequence[Contender] = (),
        name: str = "ours",
        given: tuple[str, float] | None = None,
        first: int = 1,
        bytes_read: int = 0,
        notes: Sequence[str] = (),
    ) -> Contest:
        """Everyone together.

        short: so many symbols show what exactness costs. first: the number of the first payload symbol.
        """
        draw = self.request.draw
        return Contest(
            unit=unit,
            ours=Contender(name, draw, amount, warm=partial(draw, n_symbols=short)),
            exact=all(sample.exact for sample in self.samples),
            peers=peers,
            given=given,
            exact_mode=Contender("exact", partial(draw, exact=True, n_symbols=short)),
            other_mode=Contender("approximate", partial(draw, exact=False, n_symbols=short)),
            first_symbol=Contender("first symbol", partial(draw, n_symbols=first)),
            peak_memory=self.peak_memory,
            bytes_read=bytes_read,
            notes=notes,
        )


def alone(request: Request, setting: Setting) -> Ours:
    """Ours while nobody else is in memory: one whole repetition, which also warms up."""
    samples: list[Sample] = []
    peak = machine.peak_memory(lambda: samples.extend(request.draw()), torch.device(setting.device))
    return Ours(request, samples, peak)


# ------------------------------------------------------------------------ text


def tokens(n: int, seed: int) -> tuple[int, ...]:
    """A prompt of n random tokens, none of them special."""
    return tuple(torch.randint(300, 32000, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


def in_precision(model: AutoregressiveModel, precision: Precision) -> AutoregressiveModel:
    """The model itself, changed."""
    return prepack(model if precision == "fp32" else quantise(model, precision))


def llama_cpp_is_here(setting: Setting) -> bool:
    return setting.device == "cpu" and find_spec("llama_cpp") is not None and find_spec("gguf") is not None


def llama_cpp_of(model: AutoregressiveModel, kind: llama_gguf.Kind) -> Any:
    with tempfile.TemporaryDirectory() as folder:  # its memory map outlives the file's name
        return llama_gguf.llama_cpp(model, Path(folder), kind)


def beside_hugging_face(
    model: AutoregressiveModel, prompts: Sequence[tuple[int, ...]], n_new: int, samples: Sequence[Sample]
) -> tuple[list[Contender], list[str]]:
    """Hugging Face in float32 as a contender, if installed, and how far it agrees with ours."""
    if find_spec("transformers") is None:
        return [], ["transformers is not installed: pip install armm[bench]"]
    theirs = llama.hugging_face(model)
    difference = llama.largest_difference(model, theirs, prompts[0])
    run = partial(llama.hugging_face_run, theirs, prompts, n_new)
    pairs = [
        pair
        for sample, own in zip(samples, run(), strict=True)
        for pair in zip(sample.symbols[sample.n_prompt :], own, strict=False)
    ]
    same = sum(a == b for a, b in pairs)
    notes = [f"logits equal Hugging Face's to {difference:.1g}; {same} of {len(pairs)} greedy tokens are the same"]
    peer = Contender("Hugging Face fp32", run, len(prompts) * n_new, warm=lambda: None)
    return [peer], notes


def text_b1(precision: Precision, kind: llama_gguf.Kind, setting: Setting) -> Contest:
    """128 new tokens after a prompt of 16, greedy, one row."""
    n_new, prompt = 128, tokens(16, seed=1)
    model = in_precision(llama.our_llama().to(setting.device), precision)
    ours = alone(Request(model, n_new, (prompt,), filters=(Temperature(0),)), setting)
    original = llama.our_llama().to(setting.device)
    peers: list[Contender] = []
    notes: list[str] = []
    if llama_cpp_is_here(setting):
        theirs = llama_cpp_of(original, kind)
        run = partial(llama_gguf.llama_cpp_run, theirs, prompt)
        peers.append(Contender(f"llama.cpp {kind}", partial(run, n_new), n_new, warm=partial(run, 8)))
        if precision == "fp32":
            state = original.state(1)
            difference = state.extend([list(prompt)])[0] - torch.from_numpy(llama_gguf.llama_cpp_read(theirs, prompt))
            notes.append(f"logits equal llama.cpp's to {float(difference.abs().max()):.1g}")
    elif setting.device == "cpu":
        notes.append("llama.cpp is not here: pip install llama-cpp-python gguf")
    if precision == "fp32" or not peers:
        found, agreement = beside_hugging_face(original, [prompt], n_new, ours.samples)
        peers, notes = peers + found, notes + agreement
    return ours.contest("tok/s", n_new, n_new // 4, peers, bytes_read=llama.bytes_read(model), notes=notes)


def text_b8(setting: Setting) -> Contest:
    """64 new tokens after a prompt of 16 in each of 8 rows, greedy, each side in its best precision."""
    n_new, prompts = 64, tuple(tokens(16, seed) for seed in range(8))
    original = llama.our_llama().to(setting.device)
    tried: dict[Precision, float] = {}
    for precision in ("fp32", "bf16", "int8", "int4"):
        try:
            request = Request(in_precision(deepcopy(original), precision), 8, prompts, filters=(Temperature(0),))
        except InputError:  # this device has no kernel for it
            continue
        (times,) = contest.measure([Contender(precision, request.draw)], seconds=1.0)
        tried[precision] = min(times)
    best = min(tried, key=tried.__getitem__)
    model = in_precision(original, best)
    ours = alone(Request(model, n_new, prompts, filters=(Temperature(0),)), setting)
    notes = ["ours for 8 tokens: " + ", ".join(f"{p} {t * 1000:.0f} ms" for p, t in tried.items())]
    peers = []
    if find_spec("transformers") is None:
        notes.append("transformers is not installed: pip install armm[bench]")
    else:
        original = llama.our_llama().to(setting.device)
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            theirs = llama.hugging_face(original, dtype)
            run = partial(llama.hugging_face_run, theirs, prompts)
            peers.append(Contender(f"Hugging Face {name}", partial(run, n_new), 8 * n_new, warm=partial(run, 4)))
    return ours.contest("tok/s", 8 * n_new, n_new // 4, peers, name=f"ours, {best}", notes=notes)


def text_prefill_512(setting: Setting) -> Contest:
    """A prompt of 512 tokens, read up to the first new one: ours with bfloat16 matrices, the peers in float32."""
    prompt = tokens(512, seed=1)
    model = llama.our_llama().to(setting.device)
    half = in_precision(deepcopy(model), "bf16")
    ours = alone(Request(half, 1, (prompt,), filters=(Temperature(0),)), setting)
    if llama_cpp_is_here(setting):
        theirs = llama_cpp_of(model, "F32")
        peers, notes = [Contender("llama.cpp F32", partial(llama_gguf.llama_cpp_read, theirs, prompt), 512)], []
    else:
        peers, notes = beside_hugging_face(model, [prompt], 1, ours.samples)
        peers = [replace(peer, amount=512) for peer in peers]
    return ours.contest("tok/s", 512, 1, peers, notes=notes)


def text_ngram(setting: Setting) -> Contest:
    """128 new tokens after 8 rounds of 16, by a model that goes on going round: the best case of speculation."""
    n_new = 128
    model = llama.repeating(llama.our_llama(), period=16).to(setting.device)
    plain = Request(model, n_new, (tuple(range(16)) * 8,), filters=(Temperature(0),))
    ours = alone(replace(plain, proposer=NGram()), setting)
    drawn, expected = ours.samples[0].symbols, [i % 16 for i in range(128 + n_new)]
    notes = [
        "the model repeats its prompt, as it should" if drawn == expected else "the model does not repeat its prompt",
        "the same tokens" if drawn == plain.draw()[0].symbols else "OTHER TOKENS than without a proposer",
    ]
    peer = Contender("ours, no proposer", plain.draw, n_new, warm=lambda: None)
    return ours.contest("tok/s", n_new, n_new // 4, [peer], "ours, n-grams", notes=["; ".join(notes)])


# ----------------------------------------------------------------------- audio


def audio_model(head: CausalConv, backbone: BackboneConfig, setting: Setting) -> AutoregressiveModel:
    """8 kHz mu-law in frames of 64, random weights, and never an end."""
    model = randomised(build(Audio(sample_rate=8000, frame=FRAME, head=head), backbone))
    with torch.no_grad():
        decision: Any = model.decisions["audio"]
        decision.bias[0] += 100
    return model.to(setting.device)


def samples_and_decisions(n: int) -> int:
    """Symbols of n audio samples: every frame has an end decision before it."""
    return n + n // FRAME


def audio(n_streams: int, n_samples: int, fast: bool | None, setting: Setting) -> Contest:
    """The default frame model, from nothing, at temperature 1."""
    model = audio_model(AUDIO, Transformer(width=128, n_layers=3), setting)
    ours = alone(Request(model, samples_and_decisions(n_samples), n=n_streams, fast=fast), setting)
    short = samples_and_decisions(n_samples // 4)
    return ours.contest("samples/s", n_streams * n_samples, short, given=REAL_TIME, first=2)


def wavenet_30(n_samples: int, fast: bool, setting: Setting) -> Contest:
    """A WaveNet of 30 layers, one stream, at temperature 1."""
    model = audio_model(WAVENET, NoBackbone(), setting)
    ours = alone(Request(model, samples_and_decisions(n_samples), fast=fast), setting)
    head, n_peer = model.head("audio"), 512
    assert isinstance(head, CausalConvHead)
    clip = torch.randint(256, (4, FRAME), generator=torch.Generator().manual_seed(0)).to(setting.device)
    notes = [f"logits equal the ring buffers' to {wavenet.largest_difference(head, clip):.1g}"]
    run = partial(wavenet.generate, head, generator=torch.Generator(setting.device).manual_seed(0))
    peer = Contender("ring buffers, PyTorch", partial(run, n_peer), n_peer, warm=partial(run, 32))
    short = samples_and_decisions(n_samples // 4)
    return ours.contest("samples/s", n_samples, short, [peer], first=2, notes=notes)


# ---------------------------------------------------------------------- images


def images(modality: Image, backbone: Transformer, n_naive: int, setting: Setting) -> Contest:
    """16 images at once, at temperature 1; a naive sampler is measured on a few symbols of each."""
    model = randomised(build(modality, backbone)).to(setting.device)
    n_units = modality.n_units(modality.header(()))
    n_symbols, two_units = n_units * modality.unit_symbols, 2 * modality.unit_symbols
    ours = alone(Request(model, n_symbols, n=16), setting)
    sampler = naive.NaiveSampler(model, 16)
    symbols = torch.tensor([sample.symbols for sample in ours.samples], device=setting.device)
    nats = torch.tensor([sample.log_probs for sample in ours.samples], device=setting.device)
    difference = sampler.largest_difference(symbols[:, :two_units], nats[:, :two_units], n=3)
    draw = partial(sampler.draw, two_units, n_naive, torch.Generator(setting.device).manual_seed(0))
    peer = Contender("naive, whole images", draw, n_symbols / n_naive)
    notes = [
        f"{model.n_parameters / 1e6:.2f}M parameters; nats equal the naive sampler's to {difference:.1g}",
        f"the naive sampler was measured on {n_naive} of {n_symbols:,} symbols and multiplied",
    ]
    return ours.contest("s", 1, n_symbols // 4, [peer], notes=notes)


def build(modality: Modality, backbone: BackboneConfig) -> AutoregressiveModel:
    """A model of one modality, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoregressiveModel({modality.name: modality}, backbone, layout=[modality.name]).eval()


BINARY = Image(size=(28, 28), levels=2, head=CausalConv(channels=32))
COLOUR = Image(size=(32, 32), channels=3, levels=256, head=RGB)

WORKS: dict[str, contest.Prepare] = {
    "text_b1_fp32": partial(text_b1, "fp32", "F32"),
    "text_b1_int8": partial(text_b1, "int8", "Q8_0"),
    "text_b1_int4": partial(text_b1, "int4", "Q4_0"),
    "text_b8": text_b8,
    "text_prefill_512": text_prefill_512,
    "text_ngram": text_ngram,
    "audio_one": partial(audio, 1, 6400, False),
    "audio_one_fast": partial(audio, 1, 16000, True),
    "audio_64": partial(audio, 64, 1600, None),
    "wavenet_30": partial(wavenet_30, 1600, False),
    "wavenet_30_fast": partial(wavenet_30, 4800, True),
    "images_28": partial(images, BINARY, Transformer(width=128, n_layers=3), 4),
    "images_32": partial(images, COLOUR, Transformer(width=256, n_layers=4, n_heads=8), 2),
}


if __name__ == "__main__":
    keep_freed_memory()  # as `armm generate` does; the peers have the same
    sys.exit(contest.main(sys.argv[1:], WORKS))
