"""The curves in TensorBoard's and the CSV file: a full disk interrupts them, and ends no training."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


class Board(TensorBoardLogger):
    """TensorBoard's; begins a new file when there is space again."""

    is_failing = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with sparing(self):
            super().log_metrics(metrics, step)

    def save(self) -> None:
        with sparing(self):
            super().save()

    def finalize(self, status: str) -> None:
        with sparing(self):
            super().finalize(status)


class Curves(CSVLogger):
    """metrics.csv; what could not be written is kept for the next time."""

    is_failing = False

    def save(self) -> None:
        with sparing(self):
            super().save()


@contextmanager
def sparing(logger: Board | Curves) -> Iterator[None]:
    """Have what the disk refuses be said once, and training go on."""
    try:
        yield
    except (OSError, ValueError) as error:  # Lightning makes one of the other
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        if isinstance(logger, Board):
            logger._experiment = None  # its writing thread has ended
        if not logger.is_failing:
            _say(cause)
        logger.is_failing = True
    else:
        logger.is_failing = False


@contextmanager
def sparing_threads() -> Iterator[None]:
    """The same for the thread that TensorBoard writes in, which shows its errors itself."""
    before = threading.excepthook

    def say(what: threading.ExceptHookArgs) -> None:
        if not isinstance(what.exc_value, OSError):
            before(what)

    threading.excepthook = say
    try:
        yield
    finally:
        threading.excepthook = before


def _say(error: OSError) -> None:
    print(f"\nthe curves could not be written: {error.strerror or error}; training goes on", file=sys.stderr)
