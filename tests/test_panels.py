"""Products in panels: the numbers of the matrices, and a row's own whatever rows and threads there are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", reason="numba is not installed: pip install armm[fast]")
import numpy as np
from tiny_modalities import Letters, hash_parameters

from armm import panels, team
from armm.backbones import Transformer
from armm.compiled import inner, kept
from armm.kernels import DIGITS, PANELS, to_int8
from armm.model import AutoregressiveModel

needs_instruction = pytest.mark.skipif(not panels.multiplies_digits(), reason="a processor without AVX-512 VNNI")
SHAPES = [(1, 16), (16, 16), (33, 48), (100, 64), (200, 32)]  # outputs and inputs


@pytest.fixture(params=[1, 2, 3])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@team.together
@inner
def multiply_part(
    address: int, n_panels: int, x: np.ndarray, out: np.ndarray, thread: int, n_threads: int, meeting: np.ndarray
) -> None:
    panels.multiply_floats(address, n_panels, x, out, thread, n_threads)


@kept
def multiply(address: int, n_panels: int, x: np.ndarray, out: np.ndarray, n_threads: int) -> None:
    multiply_part((address, n_panels, x, out), n_threads)


def product(packed: Tensor, x: Tensor) -> Tensor:
    """(M, K) float32 rows with packed float32 weights."""
    out = np.zeros((len(x), panels.PANEL * len(packed)), np.float32)
    multiply(packed.data_ptr(), len(packed), x.numpy(), out, team.team_size())
    return torch.from_numpy(out)


@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_float_products_are_those_of_the_matrix(n_out: int, n_in: int, n_threads: int) -> None:
    generator = torch.Generator().manual_seed(n_out)
    weight, bias, x = (torch.randn(*size, generator=generator) for size in ((n_out, n_in), (n_out,), (11, n_in)))
    packed = panels.pack_floats(weight, bias)
    whole = product(packed, x)
    torch.testing.assert_close(whole[:, :n_out], x @ weight.T + bias, rtol=1e-5, atol=1e-4)
    assert torch.equal(whole[:, n_out:], torch.zeros_like(whole[:, n_out:]))
    for m in (1, 2, 4, 5):  # whatever tiles the rows fall into
        assert torch.equal(product(packed, x[:m]), whole[:m])
        assert torch.equal(product(packed, x[3 : 3 + m].clone()), whole[3 : 3 + m])


@needs_instruction
@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_products_of_digits_are_exact(n_out: int, n_in: int, n_threads: int) -> None:
    """The same as those of torch's operator, bit for bit; and the codes can be read back."""
    generator = torch.Generator().manual_seed(n_in)
    codes, scales = to_int8(torch.randn(n_out, n_in, generator=generator))
    x = torch.randn(9, n_in, generator=generator) * torch.logspace(-3, 3, 9)[:, None]
    packed = PANELS.pack(codes, scales)
    assert torch.equal(PANELS.unpack(packed, scales, 0), codes)
    found = PANELS.product(x, packed, scales, 0)
    expected = x.double() @ (codes.double() * scales.double()[:, None]).T
    allowed = x.abs().amax(1, keepdim=True).double() / (2 * panels.LARGEST_PAIR) * codes.double().abs().sum(1)  # type: ignore[operator]
    assert ((found - expected).abs() <= (allowed + 1) * scales.double() + 1e-6 * expected.abs()).all()
    for m in (1, 2, 3):
        assert torch.equal(PANELS.product(x[m : 2 * m], packed, scales, 0), found[m : 2 * m])
    if torch.cpu._is_vnni_supported():
        other = DIGITS.product(x, DIGITS.pack(codes, scales), scales, 0)
        torch.testing.assert_close(found, other, rtol=1e-6, atol=1e-6)


def test_steps_do_not_depend_on_the_number_of_threads() -> None:
    model = AutoregressiveModel(
        {"letters": Letters(vocab=40, ended=False)}, Transformer(width=48, n_layers=2, n_heads=3), ["letters"]
    )
    hash_parameters(model.eval())
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            state = model.state(5, exact=True, compiled=True)
            for t in range(4):
                state.extend([[t], [1], [2 * t], [t], [3]])
            found.append(state._contexts.clone())  # what stands behind them is torch's affair
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@team.together
@inner
def come_together(
    came: np.ndarray, found: np.ndarray, fails: bool, thread: int, n_threads: int, meeting: np.ndarray
) -> None:
    if fails and thread == 0:
        raise ValueError
    came[thread] = 1
    team.meet(meeting, n_threads)
    found[thread] = came.sum()


@kept
def let_come(came: np.ndarray, found: np.ndarray, fails: bool, n_threads: int) -> None:
    come_together((came, found, fails), n_threads)


def found_by(n_threads: int, fails: bool) -> list[int]:
    """How many each thread finds to have come."""
    found = np.zeros(n_threads, np.int64)
    let_come(np.zeros(n_threads, np.int64), found, fails, n_threads)
    return found.tolist()


def test_threads_wait_for_each_other() -> None:
    for _ in range(200):
        assert found_by(3, fails=False) == [3, 3, 3]


def test_nobody_waits_for_a_thread_that_failed() -> None:
    with pytest.raises(MemoryError, match="no room"):
        found_by(3, fails=True)
    assert found_by(3, fails=False) == [3, 3, 3]  # and the others can be had again


def test_without_openmp_one_thread_does_everything() -> None:
    """torch for other systems brings another library; compiled code must still find what it calls."""
    code = """
import ctypes
from unittest.mock import patch
import numba
import numpy as np
import torch
import armm.compiled
with patch.object(ctypes, "CDLL", side_effect=OSError):
    import armm.team
done = armm.team.together(numba.njit(lambda out, thread, n_threads, meeting: out.fill(10 * thread + n_threads)))
out = np.zeros(2)
numba.njit(lambda out: done((out,), 2))(out)
print(out.tolist())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "[1.0, 1.0]\n", ran.stderr
