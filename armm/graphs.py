"""Steps recorded once and replayed as a whole: on a GPU launching small kernels one by one takes longer than they run.

What is recorded is a function without arguments whose tensors stay where they are: it reads what was written into them
before, and leaves its results in the same places every time. Whatever it decides by Python's numbers is recorded with
it, so there is a recording for each of them.

On CUDA devices a recording is a CUDA graph (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

Body = Callable[[], tuple[Tensor, ...]]


class Recording(NamedTuple):
    """`replay` computes `results`, always the same tensors."""

    replay: Callable[[], None]
    results: tuple[Tensor, ...]


def record_on_cuda(body: Body) -> Recording:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = body()
    return Recording(graph.replay, results)


RECORDERS: dict[str, Callable[[Body], Recording]] = {"cuda": record_on_cuda}


def records(device: torch.device) -> bool:
    """Whether steps on a device can be recorded."""
    return device.type in RECORDERS


class Recordings:
    """The recordings of one state. A body must be fit to be run again where it was left.

    The first call with a key runs the body as it is, which also loads its kernels; the second records it. Where that
    fails, bodies are run as they are from then on, and a warning says so.
    """

    def __init__(self, device: torch.device) -> None:
        self._record = RECORDERS[device.type]
        self._known: dict[Hashable, Recording | None] = {}
        self._failed = False

    def clear(self) -> None:
        """The tensors that bodies read are others now."""
        self._known.clear()

    def run(self, key: Hashable, body: Body) -> tuple[Tensor, ...]:
        """The body's results, which stay as they are until the next call.

        key: all that the body decides by besides what its tensors hold.
        """
        if self._failed or key not in self._known:
            self._known[key] = None
            return body()
        recording = self._known[key]
        if recording is None:
            try:
                recording = self._known[key] = self._record(body)
            except RuntimeError as error:
                self._failed = True
                reason = str(error).splitlines()[0]
                warnings.warn(f"steps could not be recorded ({reason}); they are taken one by one", stacklevel=2)
                return body()
        recording.replay()
        return recording.results
