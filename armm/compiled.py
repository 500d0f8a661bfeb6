"""What compiled loops share (`pip install "armm[fast]"`): how they are compiled, and a little arithmetic.

Axes: R rows, I inputs and O outputs of a product.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numba import njit

# nothing that reorders sums: a row's results must not depend on how a loop over rows was compiled
inner = njit(error_model="numpy", fastmath={"contract"})
# where these are not inlined, the loops around them are not made of vectors
scalar = njit(error_model="numpy", fastmath={"contract"}, forceinline=True)


def kept(function: Callable[..., None]) -> Callable[..., None]:
    """Compiled by the first call on a machine, and kept on disk where there is a place to write to.

    Numba keeps code under a function's name and the age of its own file. Here the content of all files that it was
    made of is in the name. And one process compiles at a time: two that add to numba's index at once may leave the
    code of one signature under another (its issues 4807 and 10128), from then on.
    """
    try:
        function.__qualname__ = f"{function.__qualname__}-{digest_of(function.__module__)}"
        compiled: Any = njit(function, error_model="numpy", fastmath={"contract"}, nogil=True, cache=True)
    except (RuntimeError, OSError):  # numba finds no such place; or there is no source to read
        return njit(function, error_model="numpy", fastmath={"contract"}, nogil=True)
    place, compile_now = Path(compiled.stats.cache_path), compiled.compile

    def compile_alone(signature: Any) -> Any:
        with alone_in(place):
            return compile_now(signature)

    compiled.compile = compile_alone
    return compiled


def digest_of(module: str) -> str:
    """Of the source of a module and of all modules whose compiled functions it names."""
    found, names = hashlib.sha256(), [module]
    for name in names:
        own = sys.modules[name]
        found.update(inspect.getsource(own).encode())
        functions = [getattr(value, "py_func", getattr(value, "_defn", None)) for value in vars(own).values()]
        others = {function.__module__ for function in functions if function is not None}
        names += sorted(others - set(names))
    return found.hexdigest()[:12]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No other process is inside with the same folder, where its file system knows locks."""
    with ExitStack() as held:
        with suppress(OSError, NotImplementedError):
            held.enter_context(lock_of(folder))
        yield


@cache
def lock_of(folder: Path) -> FileLock:
    return FileLock(folder / "compiling.lock")


ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
LOG2_E, LN_2 = np.float32(1.44269504), (np.float32(0.693359375), np.float32(-2.12194440e-4))  # ln(2) in two parts
ROUND = np.float32(1.5 * 2**23)  # added to a small number: rounds it
ROUND_BITS = ROUND.view(np.int32)
EXP = tuple(np.float32(c) for c in (1.98756915e-4, 1.39819995e-3, 8.33345191e-3, 4.16657959e-2, 0.166666655, 0.5, 1, 1))


@inner
def copy(out: np.ndarray, x: np.ndarray) -> None:
    """Put (I,) numbers at the beginning of others; an assignment to a slice takes numba a second to compile."""
    for i in range(len(x)):
        out[i] = x[i]


@inner
def add_product(out: np.ndarray, x: np.ndarray, weights: np.ndarray) -> None:
    """(R, O) out += (R, I) x @ (I, O) weights, four inputs at a time."""
    n_in, n_out = weights.shape
    fours = n_in - n_in % 4
    for i in range(0, fours, 4):
        for r in range(len(x)):
            a, b, c, d = x[r, i], x[r, i + 1], x[r, i + 2], x[r, i + 3]
            for o in range(n_out):
                pair = a * weights[i, o] + b * weights[i + 1, o]
                out[r, o] += pair + (c * weights[i + 2, o] + d * weights[i + 3, o])
    for i in range(fours, n_in):
        for r in range(len(x)):
            for o in range(n_out):
                out[r, o] += x[r, i] * weights[i, o]


@scalar
def exp(x: np.float32) -> np.float32:
    """exp of a float32 within [-87, 88], relative error 1e-7; unlike a library's, compiled to vectors.

    2^n e^r with r in ±ln(2) / 2 and the polynomial of Cephes' expf (netlib.org/cephes).
    """
    x = min(max(x, np.float32(-87)), np.float32(88))
    shifted = x * LOG2_E + ROUND  # the lowest bits of its mantissa are n
    n = shifted - ROUND
    r = x - n * LN_2[0] - n * LN_2[1]
    series = EXP[0]
    for coefficient in EXP[1:]:
        series = series * r + coefficient
    power = np.int32((np.float32(shifted).view(np.int32) - ROUND_BITS + np.int32(127)) << np.int32(23))
    return series * np.int32(power).view(np.float32)


@scalar
def sigmoid(x: np.float32) -> np.float32:
    return ONE / (ONE + exp(-x))


@scalar
def tanh(x: np.float32) -> np.float32:
    e = exp(-TWO * abs(x))
    y = (ONE - e) / (ONE + e)
    return y if x > ZERO else -y


@inner
def silu(x: np.ndarray) -> None:
    for r in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[r, j] *= sigmoid(x[r, j])
