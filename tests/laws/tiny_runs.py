"""Tiny trainings of every kind, all noise on: what the law of exact resume is checked on, in one process or two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from own_files import wav_bytes
from tiny_modalities import hash_symbols
from torch import Tensor

from armm.backbones import Transformer
from armm.datasets import Item, Items, Manifest, OnError, Source, Splits
from armm.heads import CausalConv
from armm.modalities import Audio, Image, Label, Text
from armm.modality import Modality
from armm.training import DataModule, GenerativeModule, Optimization
from armm.training.checkpoints import CheckedIO, newest
from armm.training.guard import Step, tensors_in
from armm.training.layout import local, part_again
from armm.training.saving import Checkpointing, Checkpoints

BACKBONE = Transformer(width=8, n_layers=1, n_heads=2, dropout=0.2)
HEAD = CausalConv(channels=4, skip=4, dilations=(1, 2), hidden_layers=1, dropout=0.2)


class Noisy(Items):
    """Items drawn anew at every visit, as binarised images are."""

    varies = True

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int, draw: int) -> Item:
        item = dict(self.items[index])
        if "image" in item:
            item["image"] = np.random.default_rng(draw).integers(0, 3, (4, 4)).astype(np.uint8)
        return item


@dataclass(frozen=True)
class Given(Source):
    items: Sequence[Item]

    def load(self, modalities: Mapping[str, Modality], path: Path | None, on_error: OnError) -> Splits:
        return Splits(Noisy(self.items), Noisy(self.items[:3]), Noisy(self.items[:3]))


def text(k: int) -> str:
    return "".join(chr(97 + symbol) for symbol in hash_symbols(9 + 5 * k, 20, seed=k))


def sound(k: int) -> np.ndarray:
    return np.sin(np.arange(20 + 9 * k) * (0.1 + 0.05 * k)).astype(np.float32)


N_ITEMS = 7  # 3 batches of 2 an epoch
PICTURE = np.zeros((4, 4), dtype=np.uint8)
TEXT, AUDIO = Text(kind="bytes", ended=True), Audio(frame=8, head=HEAD)
IMAGE, LABEL = Image(size=(4, 4), levels=3, head=HEAD), Label(n_classes=3)
# modalities, layout, items, options of the data
CASES: dict[str, tuple[tuple[Modality, ...], list[str] | None, list[Item], dict[str, Any]]] = {
    "text": ((TEXT,), ["text"], [{"text": text(k)} for k in range(N_ITEMS)], {"crop": 16}),
    "images": ((IMAGE,), ["image"], [{"image": PICTURE}] * N_ITEMS, {}),
    "audio": ((AUDIO,), ["audio"], [{"audio": sound(k)} for k in range(N_ITEMS)], {"crop": 3}),
    "mixed": (
        (LABEL, TEXT, IMAGE, AUDIO),
        None,
        [
            {"label": k % 3, **({"text": text(k)} if k % 2 else {"image": PICTURE}), "audio": sound(k)}
            for k in range(N_ITEMS)
        ],
        {"conditions": ["label"], "drop_conditions": 0.3},
    ),
    "manifest": (
        (LABEL, TEXT, AUDIO),
        None,
        [{"line": [{"label": k % 3, "loss": False}, {"text": text(k)}, {"audio": "a.wav"}]} for k in range(N_ITEMS)],
        {"drop_conditions": 0.3},
    ),
}


def source_of(case: str, items: Sequence[Item], folder: Path) -> tuple[Source, str | None]:
    """What the items of a case come from, and where that is."""
    if case != "manifest":
        return Given(items), None
    folder.mkdir(exist_ok=True)
    (folder / "a.wav").write_bytes(wav_bytes(90))
    for name, own in (("train", items), ("val", items[:3]), ("test", items[:3])):
        lines = "".join(json.dumps(item["line"]) + "\n" for item in own)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return Manifest(), str(folder)


@dataclass
class Result:
    """What a run leaves that another must equal: weights, moments, callbacks, symbols seen, losses by batch."""

    state: list[Tensor]
    n_seen: int
    losses: dict[int, float]
    validations: dict[int, float]

    def digest(self) -> str:
        """Short, for a comparison across processes."""
        total = hashlib.sha256()
        for tensor in self.state:
            total.update(tensor.contiguous().numpy().tobytes())
        return f"{total.hexdigest()[:16]} {self.n_seen}"


class Watched(GenerativeModule):
    """Keeps what the optimiser got in the first step, before clipping."""

    gradients: dict[str, Tensor]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        if self.trainer.global_step == 0:
            Watched.gradients = {n: p.grad.clone() for n, p in self.named_parameters() if p.grad is not None}


class Curve(GenerativeModule):
    """Keeps every step's loss, over all accumulated batches and processes, and its gradient's norm; the latest run's.

    Also the weights it ended with, whole; in the first process. It begins a little beside the usual weights: logits of
    zero have a gradient of zero where two symbols come equally often, and AdamW's first step is then the sign of what
    rounding left of it, which the order of summation decides.
    """

    steps: ClassVar[list[tuple[float, float]]] = []
    weights: ClassVar[dict[str, Tensor]] = {}

    def prepare(self, data: DataModule) -> None:
        is_new = self.net is None
        super().prepare(data)
        if is_new:
            noise = torch.Generator().manual_seed(1)
            for parameter in self.model.parameters():
                parameter.data += 0.02 * torch.randn(parameter.shape, generator=noise)

    def on_train_start(self) -> None:
        super().on_train_start()
        Curve.steps = []

    def _take_note(self, steps: list[Step]) -> None:
        super()._take_note(steps)
        Curve.steps += [(step.loss, step.norm) for step in steps]

    def on_train_end(self) -> None:
        super().on_train_end()
        model = self.sharded.whole_model(self.model) if self.sharded else self.model
        Curve.weights = {name: own.clone() for name, own in model.state_dict().items()} if model else {}


class Diary(L.Callback):
    """Notes every step's loss, and every validation's bits."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.validations: dict[int, float] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses[trainer.fit_loop.total_batch_idx] = float(outputs["loss"])
        assert trainer.fit_loop.epoch_loop._batches_that_stepped + 1 >= trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, GenerativeModule)
        self.validations[trainer.global_step] = pl_module.validation_bits


def train(
    case: str,
    folder: Path,
    *,
    n_steps: int = 8,
    dropout: float | None = None,
    seed: int = 0,
    workers: int = 0,
    accumulate: int = 1,
    batch_size: int = 2,
    callbacks: Sequence[L.Callback] = (),
    minutes: float = 0.0,
    module_class: type[GenerativeModule] = GenerativeModule,
    optimization: Optimization = Optimization(warmup=0.2, weight_decay=0.1),  # noqa: B008 - frozen
    backbone: Transformer = BACKBONE,
    **options: Any,
) -> Result:
    """Begin, or go on with the newest checkpoint in the folder."""
    torch.manual_seed(seed)
    modalities, layout, items, of_data = CASES[case]
    if dropout is not None:
        backbone = replace(backbone, dropout=dropout)
        heads = [replace(m.head, dropout=dropout) if isinstance(m.head, CausalConv) else m.head for m in modalities]
        modalities = tuple(replace(m, head=head) for m, head in zip(modalities, heads, strict=True))  # type: ignore
    module = module_class({m.name: m for m in modalities}, backbone, layout, optimization=optimization)
    source, path = source_of(case, items, folder.parent / "documents")
    data = DataModule(source, path=path, batch_size=batch_size, num_workers=workers, **of_data)
    diary = Diary()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        plugins=[CheckedIO()],
        callbacks=[diary, *callbacks, Checkpoints(folder, Checkpointing(minutes=minutes))],
        max_steps=n_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        **{"val_check_interval": 3, "check_val_every_n_epoch": None, "limit_val_batches": 1.0, **options},
    )
    module.prepare(data)
    saved = newest(folder)
    trainer.fit(module, datamodule=data, ckpt_path=str(saved.path) if saved else None, weights_only=True)
    assert trainer.global_step == n_steps
    return result_of(trainer, module, diary)


def result_of(trainer: L.Trainer, module: GenerativeModule, diary: Diary) -> Result:
    moments = tensors_in([optimizer.state_dict() for optimizer in trainer.optimizers])
    rates = [torch.tensor([float(group["lr"]) for group in trainer.optimizers[0].param_groups], dtype=torch.float64)]
    part_again(module)
    weights = [local(parameter.detach()) for parameter in module.parameters()]
    kept = tensors_in([callback.state_dict() for callback in trainer.callbacks])  # type: ignore[attr-defined]
    return Result([*weights, *moments, *rates, *kept], module.n_seen, diary.losses, diary.validations)
