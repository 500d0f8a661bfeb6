"""How fast we learn, beside others on the same data: `python benchmarks/training.py --data input.txt`.

Prints a table as it goes and one JSON object as its last line. What each work is and who the peers are: README.md.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from statistics import mean
from time import perf_counter
from typing import Any

import lightning as L
import numpy as np
import torch
from peers import contest
from peers.contest import Contender, Contest, Setting
from peers.gpt2_trainer import Gpt2Training
from peers.nanogpt import NanoGPT, Training, nats_per_token

from armm.backbones import Transformer
from armm.datasets import Corpus, StandardLibrary
from armm.memory import keep_freed_memory
from armm.modalities import Text
from armm.training import DataModule, GenerativeModule, Optimization
from armm.training.precision import choose
from armm.training.speed import FetchTimer, SpeedMonitor

VALIDATION = 0.1  # of the text, its end, as in nanoGPT
SKIP = 3  # steps that are not measured
N_CHARACTERS = 1_100_000  # of the text that is used where none is given: about as many as tiny Shakespeare has


@dataclass(frozen=True)
class Work:
    """A model's shape and what it learns from.

    Attributes:
        context: tokens of a window. batch_size: windows of a step.
        n_steps: measured in one repetition.
    """

    context: int
    batch_size: int
    n_layers: int
    n_heads: int
    width: int
    n_steps: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.context * self.batch_size


SMALL = Work(context=64, batch_size=12, n_layers=4, n_heads=4, width=128, n_steps=100)
# the model of the file as it stands, with fewer windows a step and no dropout
BABY = Work(context=256, batch_size=8, n_layers=6, n_heads=6, width=384, n_steps=8)
LIKE_PEERS = Optimization(lr=1e-3, muon_lr=0.0, betas=(0.9, 0.99), weight_decay=0.1, schedule="cosine", final=0.1)

# what we would choose for so short a training
QUICK = Work(context=128, batch_size=16, n_layers=4, n_heads=4, width=128, n_steps=0)
WINDOW = 64  # positions that its attention reaches back


class Steps(L.Callback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.times.append(perf_counter())


# ------------------------------------------------------------------------ data


def text_of(setting: Setting, folder: Path) -> Path:
    """The given file, or Python's own sources written to one."""
    if setting.data is not None:
        return setting.data
    path = folder / "sources.txt"
    if not path.exists():
        items = StandardLibrary().load({"text": Text(kind="bytes")}, None, "fail").train
        whole = "".join(str(items.item(i, 0)["text"]) for i in range(len(items)))
        path.write_text(whole.encode("ascii", "replace").decode()[:N_CHARACTERS], encoding="utf-8")
    return path


def tokens_of(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Characters as numbers, the part to learn from and the part to validate on, and how many different ones."""
    text = path.read_text(encoding="utf-8")
    alphabet, tokens = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype="<u4"), return_inverse=True)
    cut = len(tokens) - round(len(tokens) * VALIDATION)
    return tokens[:cut], tokens[cut:], len(alphabet)


# ------------------------------------------------------------------------ ours


def module_of(work: Work, optimization: Optimization, compiled: bool = False, **blocks: Any) -> GenerativeModule:
    torch.manual_seed(0)
    backbone = Transformer(width=work.width, n_layers=work.n_layers, n_heads=work.n_heads, **blocks)
    modalities: Any = {"text": Text(kind="chars")}
    return GenerativeModule(modalities, backbone, ["text"], 8 * work.context, optimization, compile=compiled)


def data_of(work: Work, path: Path) -> DataModule:
    return DataModule(
        Corpus(val=VALIDATION), str(path), work.batch_size, crop=work.context, eval_window=2 * work.context
    )


def trainer_of(setting: Setting, precision: str, callbacks: Sequence[L.Callback] = (), **ends: Any) -> L.Trainer:
    """As `armm train` makes it, but for what it writes."""
    return L.Trainer(
        accelerator=setting.device,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        max_epochs=-1,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        profiler=FetchTimer(),
        callbacks=[SpeedMonitor(), *callbacks],
        **ends,
    )


def our_rate(
    work: Work, path: Path, setting: Setting, precision: str, optimization: Optimization, compiled: bool = False
) -> float:
    """Tokens per second of a training that was begun anew; compiling falls to the steps that are left out."""
    module, steps = module_of(work, optimization, compiled), Steps()
    trainer = trainer_of(setting, precision, [steps], max_steps=work.n_steps + SKIP)
    trainer.fit(module, datamodule=data_of(work, path))
    return work.tokens * work.n_steps / (steps.times[-1] - steps.times[SKIP - 1])


def our_nats(work: Work, path: Path, setting: Setting, seconds: float, optimization: Optimization) -> float:
    """Nats per character of the validation part after so many seconds of training, its set-up included."""
    blocks = {"window": WINDOW, "value_embeddings": True, "residual_scalars": True}
    module, data = module_of(work, optimization, **blocks), data_of(work, path)
    begin = perf_counter()
    precision = choose(module, data, setting.device).precision
    left = max(seconds - (perf_counter() - begin), 0.5)
    trainer = trainer_of(setting, precision, max_steps=-1, max_time={"seconds": left})
    trainer.fit(module, datamodule=data)
    trainer.limit_val_batches = 1.0
    trainer.validate(module, datamodule=data, verbose=False)
    return module.metrics["val"]["text"]["nats_per_char"]


# ----------------------------------------------------------------------- peers


def shape_of(work: Work, vocab: int) -> NanoGPT:
    return NanoGPT(vocab, work.context, work.batch_size, work.n_layers, work.n_heads, work.width)


def nano_rate(training: Training, work: Work) -> float:
    """Tokens per second, going on where the repetition before stopped."""
    begin = perf_counter()
    for _ in range(work.n_steps):
        training.step()
    return work.tokens * work.n_steps / (perf_counter() - begin)


def trainer_rate(config: NanoGPT, data: np.ndarray, work: Work, autocast: bool) -> float:
    return work.tokens / Gpt2Training(config, data, autocast).train(work.n_steps + SKIP, SKIP)


def nano_nats(config: NanoGPT, train: np.ndarray, val: np.ndarray, seconds: float, device: str) -> float:
    training = Training(config, train, device)
    training.train(seconds)
    training.model.eval()
    return nats_per_token(lambda tokens: training.model(tokens.to(device)).cpu(), val, config.context)


def trainer_nats(config: NanoGPT, train: np.ndarray, val: np.ndarray, seconds: float) -> float:
    """Its schedule wants a number of steps: as many as a short measurement says fit."""
    a_step = mean(Gpt2Training(config, train).train(30, 10) for _ in range(2))
    training = Gpt2Training(config, train)
    training.train(max(1, int(seconds / a_step)))
    training.model.eval()
    device = training.model.device
    return nats_per_token(lambda tokens: training.logits(tokens.to(device)).cpu(), val, config.context)


def has_trainer() -> bool:
    return find_spec("transformers") is not None and find_spec("accelerate") is not None


NO_TRAINER = "Hugging Face's Trainer is not here: pip install transformers accelerate"


# ----------------------------------------------------------------------- works


def throughput(work: Work, folder: Path, setting: Setting) -> Contest:
    """Tokens per second of whole training steps, data and optimiser included, everyone with AdamW."""
    path = text_of(setting, folder)
    train, _, vocab = tokens_of(path)
    config = shape_of(work, vocab)
    choice = choose(module_of(work, LIKE_PEERS), data_of(work, path), setting.device)
    ours = partial(our_rate, work, path, setting)
    peers = []
    for name, autocast in (("fp32", False), ("bf16 autocast", True)):
        training = Training(config, train, setting.device, autocast)
        warm = partial(nano_rate, training, replace(work, n_steps=SKIP))
        peers.append(Contender(f"nanoGPT {name}", partial(nano_rate, training, work), warm=warm, tells=True))
    notes = [f"precision {choice.precision}: {choice.reason}"]
    variants = [
        Contender("ours, 32-true", partial(ours, "32-true", LIKE_PEERS), warm=lambda: None, tells=True),
        Contender("ours with Muon", partial(ours, choice.precision, Optimization()), warm=lambda: None, tells=True),
    ]
    if which(os.environ.get("CXX", "g++")):
        run = partial(ours, choice.precision, LIKE_PEERS, compiled=True)
        variants.append(Contender(f"ours, {choice.precision}, compiled", run, warm=lambda: None, tells=True))
    else:
        notes.append("model.compile needs a C++ compiler, and none was found")
    if has_trainer():
        for name, autocast in (("fp32", False), ("bf16", True)):
            run = partial(trainer_rate, config, train, work, autocast)
            peers.append(Contender(f"Hugging Face Trainer {name}", run, warm=lambda: None, tells=True))
    else:
        notes.append(NO_TRAINER)
    return Contest(
        unit="tok/s",
        ours=Contender(f"ours, {choice.precision}", partial(ours, choice.precision, LIKE_PEERS), tells=True),
        exact=None,
        variants=variants,
        peers=peers,
        notes=notes,
    )


def shakespeare(seconds: float, folder: Path, setting: Setting) -> Contest:
    """Nats per character of the last tenth after so many seconds: ours as we would, the peers as nanoGPT says."""
    path = text_of(setting, folder)
    train, val, vocab = tokens_of(path)
    config = shape_of(SMALL, vocab)
    nano = partial(nano_nats, config, train, val, seconds, setting.device)
    peers, notes = [Contender("nanoGPT, its CPU settings", nano, warm=lambda: None, tells=True)], []
    if has_trainer():
        run = partial(trainer_nats, config, train, val, seconds)
        peers.append(Contender("Hugging Face Trainer", run, warm=lambda: None, tells=True))
    else:
        notes.append(NO_TRAINER)
    ours = partial(our_nats, QUICK, path, setting, seconds, Optimization(muon_lr=0.015))
    return Contest(
        unit="nats/char",
        ours=Contender("ours", ours, warm=lambda: None, tells=True),
        exact=None,
        peers=peers,
        most=1,
        notes=notes,
    )


def works(folder: Path, seconds: float = 100.0) -> dict[str, contest.Prepare]:
    """folder: for a text of our own."""
    return {
        "train_4x128": partial(throughput, SMALL, folder),
        "train_6x384": partial(throughput, BABY, folder),
        "shakespeare_100s": partial(shakespeare, seconds, folder),
    }


def quiet() -> None:
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    quiet()
    keep_freed_memory()  # as `armm train` does; the peers have the same
    with TemporaryDirectory() as place:
        sys.exit(contest.main(sys.argv[1:], works(Path(place)), learns=True))
