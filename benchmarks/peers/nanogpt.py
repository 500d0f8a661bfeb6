"""nanoGPT's model and training loop, for comparison: Karpathy, github.com/karpathy/nanoGPT, written anew.

GPT-2's block without biases: layer norm, learned positions, exact GELU, output matrix tied to the embedding table;
AdamW with decay on matrices, cosine to a tenth of the rate, gradients clipped at 1.
Axes: B rows, N positions, D width, H heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NanoGPT:
    """Sizes and settings. The defaults are those that its README gives for a computer without a GPU.

    `config/train_shakespeare_char.py` with `--device=cpu --compile=False --block_size=64 --batch_size=12 --n_layer=4
    --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0`.
    """

    vocab: int
    context: int = 64
    batch_size: int = 12
    n_layers: int = 4
    n_heads: int = 4
    width: int = 128
    dropout: float = 0.0
    lr: float = 1e-3
    min_lr: float = 1e-4
    warmup_steps: int = 100
    decay_steps: int = 2000
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to `min_lr`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        if step > self.decay_steps:
            return self.min_lr
        done = (step - self.warmup_steps) / (self.decay_steps - self.warmup_steps)
        return self.min_lr + 0.5 * (1.0 + math.cos(math.pi * done)) * (self.lr - self.min_lr)


class Attention(nn.Module):
    def __init__(self, config: NanoGPT) -> None:
        super().__init__()
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.c_attn = nn.Linear(config.width, 3 * config.width, bias=False)
        self.c_proj = nn.Linear(config.width, config.width, bias=False)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (t.view(b, n, self.n_heads, d // self.n_heads).transpose(1, 2) for t in self.c_attn(x).split(d, 2))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(b, n, d)))


class Block(nn.Module):
    def __init__(self, config: NanoGPT) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, bias=False)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.width, bias=False)
        self.c_fc = nn.Linear(config.width, 4 * config.width, bias=False)
        self.c_proj = nn.Linear(4 * config.width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.dropout(self.c_proj(F.gelu(self.c_fc(self.ln_2(x)))))


class GPT(nn.Module):
    """(B, N) tokens -> (B, N, V) logits."""

    def __init__(self, config: NanoGPT) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab, config.width)
        self.wpe = nn.Embedding(config.context, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f = nn.LayerNorm(config.width, bias=False)
        self.lm_head = nn.Linear(config.width, config.vocab, bias=False)
        self.wte.weight = self.lm_head.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 0.02 / math.sqrt(2 * config.n_layers) if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.drop(self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device)))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class Training:
    """Its training loop, a step at a time.

    Args:
        data: (T,) tokens to train on.
        autocast: what it computes in: nothing on a CPU, as nanoGPT does it there, or autocast to bfloat16.
    """

    def __init__(self, config: NanoGPT, data: np.ndarray, device: str = "cpu", autocast: bool = False) -> None:
        self.config, self.data, self.device, self.autocast = (
            config,
            data.astype(np.uint16),
            torch.device(device),
            autocast,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1337)
            self.model = GPT(config).to(device)
        self.generator = torch.Generator().manual_seed(1337)
        self.n_steps = 0
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        others = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        fused = self.device.type == "cuda"  # as there
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
        self.next = self.batch()

    def batch(self) -> tuple[Tensor, Tensor]:
        """Random windows, and the same a token later."""
        n, data = self.config.context, self.data
        starts = torch.randint(len(data) - n, (self.config.batch_size,), generator=self.generator)
        x = torch.stack([torch.from_numpy(data[i : i + n].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + n].astype(np.int64)) for i in starts])
        return x.to(self.device), y.to(self.device)

    def precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()

    def step(self, rate: float | None = None) -> None:
        """One optimiser step, at the schedule's rate or another."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.n_steps) if rate is None else rate
        x, y = self.next
        with self.precision():
            logits = self.model(x)
            loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1), ignore_index=-1)
        self.next = self.batch()  # prefetched there while a GPU computes
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.n_steps += 1

    def train(self, seconds: float) -> None:
        """For so many seconds, the schedule stretched over them: at equal time nobody is cut off in mid-decay."""
        begin = perf_counter()
        while (done := (perf_counter() - begin) / seconds) < 1:
            self.step(self.config.rate(round(done * self.config.decay_steps)))


@torch.no_grad()
def nats_per_token(logits: Callable[[Tensor], Tensor], data: np.ndarray, context: int) -> float:
    """Mean nats of the tokens of `data` after the first, each with half a context before it where there is one.

    nanoGPT's own `estimate_loss` scores random windows, whose first tokens have no context: this is kinder.
    logits: (B, N) tokens -> (B, N, V).
    """
    tokens, half = torch.from_numpy(data.astype(np.int64)), context // 2
    starts = range(0, len(tokens) - context, half)
    total, count = 0.0, 0
    for first in range(0, len(starts), 64):
        windows = torch.stack([tokens[s : s + context + 1] for s in starts[first : first + 64]])
        nats = F.cross_entropy(logits(windows[:, :-1]).transpose(1, 2).float(), windows[:, 1:], reduction="none")
        kept = nats[:, half:].flatten()
        if first == 0:
            kept = torch.cat([nats[0, :half], kept])
        total, count = total + float(kept.double().sum()), count + kept.numel()
    return total / count
