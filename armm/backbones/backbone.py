"""The contract of a backbone: a causal map from unit embeddings to contexts, seen in parallel and step by step.

Axes: B rows, N positions, D width, R rows of one call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Turns embeddings of past units into contexts: output n depends on inputs at positions <= n only."""

    @abstractmethod
    def forward(self, x: Tensor, values: Tensor | None) -> Tensor:
        """(B, N, D) embeddings and, where the config asks for them, (B, N, config.value_width) -> (B, N, D)."""

    @abstractmethod
    def state(self, n_rows: int, min_rows: int = 1) -> BackboneState:
        """An empty state for stepping through rows.

        min_rows: every matrix product has at least so many rows, so that its results do not depend on `n_rows`.
        """


class BackboneState(ABC):
    """What a backbone remembers of each row, indexed by position."""

    @abstractmethod
    def extend(
        self, rows: Tensor, x: Tensor, values: Tensor | None, counts: list[int], stepwise: bool = False
    ) -> Tensor:
        """Append units to rows.

        Args:
            rows: (R,) which rows.
            x: (R, N, D), right-padded. values: (R, N, value_width) or None.
            counts: how many of the N are real, for every row.
            stepwise: the same numbers as if the units had been appended one call each, bit for bit where products of
                rows allow it.

        Returns: (R, N, D) contexts; what stands beyond `counts` means nothing.
        """

    def compile(self) -> None:
        """Take steps in compiled code from now on, where there is such for this backbone and machine."""
        return

    @abstractmethod
    def truncate(self, lengths: list[int]) -> None:
        """Forget all positions of row i from `lengths[i]` on."""

    @abstractmethod
    def gather_rows(self, index: Tensor) -> None:
        """Row i becomes what row `index[i]` was."""

    @abstractmethod
    def copy_row(self, row: int, source: BackboneState, source_row: int) -> None:
        """A row becomes a copy of one of another state of the same backbone."""


class BackboneConfig(ABC):
    """Which backbone, as a recipe names it: a frozen dataclass that builds the module."""

    width: int

    @property
    def value_width(self) -> int:
        """Width of the second embedding of each unit that this backbone wants (value embeddings); 0 for none."""
        return 0

    @abstractmethod
    def build(self) -> Backbone: ...

    def check_context(self, context: int | None) -> None:
        """Raises InputError: this backbone cannot take documents of that many units."""
        return
