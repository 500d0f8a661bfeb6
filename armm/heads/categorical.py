"""A softmax over the vocabulary, straight from the context: the head of GPT, LLaMA and iGPT."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armm.errors import InputError
from armm.exactness import at_least
from armm.heads.cross_entropy import nats_of
from armm.heads.distributions import bounded, cap
from armm.heads.head import Head, HeadConfig, HeadState, Unit


@dataclass(frozen=True)
class Categorical(HeadConfig):
    """Softmax over the vocabulary, for one symbol per unit.

    Attributes:
        softcap: bound the logits softly to ±softcap (Gemma 2, arXiv:2408.00118); none by default.
        tied: use the embedding table as the output matrix (arXiv:1608.05859).
        bias: add a bias to the logits; it starts at the log-frequency of each symbol.
    """

    softcap: float | None = None
    tied: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        if self.softcap is not None and self.softcap <= 0:
            raise InputError(f"softcap is {self.softcap}, it must be greater than 0; leave it out for none")

    def build(self, width: int, unit: Unit) -> Head:
        if unit.symbols != 1:
            raise InputError(
                f"the Categorical head codes 1 symbol per unit, this modality's units have {unit.symbols}; "
                "use armm.heads.CausalConv"
            )
        return CategoricalHead(width, unit.vocab, self)


class CategoricalHead(Head):
    """logits = W context + b, softly bounded where asked."""

    def __init__(self, width: int, vocab: int, config: Categorical) -> None:
        super().__init__()
        self.vocab, self.config = vocab, config
        self.weight = nn.Parameter(torch.randn(vocab, width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(vocab)) if config.bias else None
        self.output: nn.Module | None = None  # what multiplies by W instead of `weight`

    def replace_output(self, output: nn.Module) -> None:
        """Multiply by another module, (*, D) -> (*, V), from here on: a packed matrix, for generation.

        `weight` is emptied, unless it is the embedding table too.
        """
        self.output = output
        if not self.config.tied:
            self.weight = nn.Parameter(self.weight.new_empty(0, self.weight.shape[1]), requires_grad=False)

    def distribution(self, context: Tensor) -> Tensor:
        """(*, D) -> (*, V) logits."""
        return cap(self._sums(context), self.config.softcap)

    def _sums(self, context: Tensor) -> Tensor:
        """The same without their cap. A tied table has one row more, the unknown symbol, which is never coded."""
        if self.output is None:
            return F.linear(context, self.weight[: self.vocab], self.bias)
        logits = self.output(context)
        return logits if self.bias is None else logits + self.bias

    def logits(self, context: Tensor, symbols: Tensor, known: Tensor, header: Tensor) -> Tensor:
        return self.distribution(context)[:, :, None, :]

    def log_prob(
        self, context: Tensor, symbols: Tensor, known: Tensor, header: Tensor, read: Tensor | None = None
    ) -> Tensor:
        logits = bounded(self._sums(context), self.config.softcap)
        nats = nats_of(logits.flatten(0, 1), symbols.clamp(max=self.vocab - 1).flatten()).view(symbols.shape)
        return torch.where(known, -nats, 0.0)

    def state(self, n_rows: int, min_rows: int = 1) -> HeadState:
        return CategoricalState(self, min_rows)

    def set_unigram(self, log_unigram: Tensor) -> None:
        if self.bias is not None:
            with torch.no_grad():
                self.bias.copy_(log_unigram)


class CategoricalState(HeadState):
    """The open unit's context says everything, so there is nothing to remember."""

    context_only = True

    def __init__(self, head: CategoricalHead, min_rows: int) -> None:
        self.head, self.min_rows = head, min_rows

    def of_context(self, context: Tensor) -> Tensor:
        return self.head.distribution(at_least(context, self.min_rows))[: len(context)]

    def load(self, rows: Tensor, context: Tensor, symbols: Tensor, lengths: Tensor, header: Tensor) -> None:
        pass

    def open(self, rows: Tensor, context: Tensor) -> None:
        pass

    def extend(self, rows: Tensor, symbols: Tensor) -> None:
        pass

    def logits(self, rows: Tensor) -> Tensor:
        raise NotImplementedError("a head of the context alone is asked `of_context`")

    def gather_rows(self, index: Tensor) -> None:
        pass
