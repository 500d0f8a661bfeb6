"""While samples are drawn: how far it is, and one line where memory runs out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from armm.errors import InputError

BAR = 24  # characters
EVERY = 0.2  # seconds


@contextmanager
def enough_memory(state: Callable[[], str]) -> Iterator[None]:
    """Raises InputError: memory runs out inside; `state` says what is there."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = ("DefaultCPUAllocator", "out of memory", "not enough memory")
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in words):
            raise
        raise InputError(f"out of memory; {state()}; lower --batch-size or --max-symbols") from error


class Progress:
    """A line on a terminal: how many samples of how many, and how fast.

    Attributes:
        n: samples that are wanted. on_terminal: there is someone to see it, who sees nothing else there.
        drawn: when the line was last drawn.
    """

    def __init__(self, n: int, alone: bool) -> None:
        self.n, self.n_samples, self.n_symbols = n, 0, 0
        self.on_terminal = alone and sys.stderr.isatty()
        self.began, self.drawn = time.perf_counter(), 0.0

    def symbols(self, n: int) -> None:
        """Some were drawn."""
        self.n_symbols += n
        if self.on_terminal and time.perf_counter() - self.drawn > EVERY:
            self._show()

    def sample(self) -> None:
        """One is finished."""
        self.n_samples += 1
        if self.on_terminal:
            self._show()

    def clear(self) -> None:
        if self.on_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _show(self) -> None:
        self.drawn = time.perf_counter()
        bar = "=" * (BAR * self.n_samples // self.n)
        rate = self.n_symbols / max(self.drawn - self.began, 1e-9)
        line = f"[{bar:<{BAR}}] {self.n_samples} of {self.n} samples, {rate:,.0f} symbols/s"
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
