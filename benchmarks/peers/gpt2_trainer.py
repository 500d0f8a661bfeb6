"""Hugging Face's GPT-2 of any size, trained by its Trainer: `pip install transformers accelerate`."""

from __future__ import annotations

import math
import tempfile
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from peers.nanogpt import NanoGPT


class Windows(Dataset[dict[str, Tensor]]):
    """Random windows of a text, a pure function of their number."""

    def __init__(self, data: np.ndarray, context: int, n: int) -> None:
        self.data, self.context = torch.from_numpy(data.astype(np.int64)), context
        generator = torch.Generator().manual_seed(1337)
        self.starts = torch.randint(len(data) - context, (n,), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = self.data[self.starts[index] : self.starts[index] + self.context]
        return {"input_ids": tokens, "labels": tokens}


class Gpt2Training:
    """The same sizes and settings as nanoGPT, in Hugging Face's model and loop.

    Its GPT-2 has biases; dropout is set to nanoGPT's. Labels are shifted inside the model.
    """

    def __init__(self, config: NanoGPT, data: np.ndarray, autocast: bool = False) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        self.config, self.data, self.autocast = config, data, autocast
        torch.manual_seed(1337)
        self.model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=config.vocab,
                n_positions=config.context,
                n_embd=config.width,
                n_layer=config.n_layers,
                n_head=config.n_heads,
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=config.dropout,
                bos_token_id=0,
                eos_token_id=0,
            )
        )

    def train(self, n_steps: int, skip: int = 2) -> float:
        """Train; returns seconds a step, the first few left out."""
        import transformers

        config, clock = self.config, _Clock.of(transformers.TrainerCallback)
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                max_steps=n_steps,
                per_device_train_batch_size=config.batch_size,
                learning_rate=config.lr,
                lr_scheduler_type="cosine_with_min_lr",
                lr_scheduler_kwargs={"min_lr": config.min_lr},
                warmup_steps=round(n_steps * config.warmup_steps / config.decay_steps),
                adam_beta1=config.betas[0],
                adam_beta2=config.betas[1],
                weight_decay=config.weight_decay,
                max_grad_norm=config.clip,
                bf16=self.autocast,
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=1337,
            )
            windows = Windows(self.data, config.context, n_steps * config.batch_size)
            trainer = transformers.Trainer(self.model, arguments, train_dataset=windows, callbacks=[clock])
            trainer.train()
        return (clock.times[-1] - clock.times[skip - 1]) / max(len(clock.times) - skip, 1)

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens).logits


class _Clock:
    """Notes when each step ended; a subclass of the Trainer's callback, which is imported late."""

    @staticmethod
    def of(callback: Any) -> Any:
        class Clock(callback):
            def __init__(self) -> None:
                self.times: list[float] = []

            def on_step_end(self, *arguments: Any, **named: Any) -> None:
                self.times.append(perf_counter())

        return Clock()


def steps_in(seconds: float, seconds_a_step: float) -> int:
    return max(1, math.floor(seconds / seconds_a_step))
