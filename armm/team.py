"""Threads that go through one compiled function side by side, meeting between its parts.

A step of a small model is a hundred pieces of a few microseconds: too short to hand each to a pool of threads. So every
thread runs the whole function, does its share of each piece, and waits at the end of it for the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic

from armm.compiled import inner

ARRIVED, ROUND, BROKEN, SIZE = 0, 8, 16, 24  # places in what threads meet at, a cache line each
PATIENCE = 2000  # looks before the others are given the processor


class Team:
    """A number of threads, this one among them."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._pool = ThreadPoolExecutor(max(n_threads - 1, 1))  # its threads start when they are needed
        self._busy = Lock()

    def run(self, function: Callable[[int, int, np.ndarray], None]) -> None:
        """Call function(thread, n_threads, meeting) in every thread; alone while somebody else has them."""
        if self.n_threads == 1 or not self._busy.acquire(blocking=False):
            function(0, 1, np.zeros(SIZE, np.int64))
            return
        meeting = np.zeros(SIZE, np.int64)

        def work(thread: int) -> None:
            try:
                function(thread, self.n_threads, meeting)
            except BaseException:
                meeting[BROKEN] = 1  # nobody waits for a thread that has gone
                raise

        try:
            others = [self._pool.submit(work, thread) for thread in range(1, self.n_threads)]
            try:
                work(0)
            finally:
                wait(others)
            for other in others:
                other.result()
        finally:
            self._busy.release()


def team() -> Team:
    """As many threads as torch has, shared by everyone in this process."""
    return _team(os.getpid(), torch.get_num_threads())


@cache
def _team(process: int, n_threads: int) -> Team:  # a forked process has none of its parent's threads
    return Team(n_threads)


@intrinsic
def _add(typing: Any, meeting: Any, place: Any, number: Any) -> Any:
    """Add to a place of an int64 array, at once for all threads. Returns what was there."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, number = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        return builder.atomic_rmw("add", builder.gep(data, [place]), number, "seq_cst")

    return types.int64(meeting, types.intp, types.int64), codegen


give_way = types.ExternalFunction("sched_yield", types.int32())


@inner
def meet(meeting: np.ndarray, n_threads: int) -> None:
    """Go on when every thread has come here."""
    if n_threads == 1:
        return
    now = _add(meeting, ROUND, 0)  # type: ignore[call-arg]
    if _add(meeting, ARRIVED, 1) == n_threads - 1:
        _add(meeting, ARRIVED, -n_threads)
        _add(meeting, ROUND, 1)
        return
    looks = 0
    while _add(meeting, ROUND, 0) == now and _add(meeting, BROKEN, 0) == 0:
        looks += 1
        if looks > PATIENCE:
            give_way()
