"""Products of few rows with large matrices in compiled code, which read the matrix as fast as memory gives it.

A matrix lies as panels of 16 outputs: 64 bytes that their sums begin with (a bias), and 64 more for every step, which
is one input of float32 weights or four of int8 ones. A tile of a few rows and a few panels is summed up in registers,
while the next panels are fetched. int8 weights are multiplied with two digits of each number (`armm.kernels`) by
one instruction (AVX-512 VNNI) for 64 products. Every sum has its own order, that of the inputs, whatever rows and
panels stand beside it and however many threads there are; sums of integers are exact.

Axes: M rows, K inputs, N outputs, P panels, T steps.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic
from torch import Tensor

from armm.compiled import ONE, ROUND, ZERO, inner, kept, scalar
from armm.team import meet, team_size, together

PANEL = 16  # outputs
FEATURES = llvm.get_host_cpu_features()
# as numba compiles for this processor, unless it was told otherwise
WIDE = bool(FEATURES.get("avx512f")) and config.ENABLE_AVX and not (config.CPU_NAME or config.CPU_FEATURES)  # type: ignore[attr-defined]
DEEP, BROAD = (4, 4) if WIDE else (2, 2)  # rows and panels of a tile: as many sums as there are registers for
FLOATS, MORE_FLOATS, DIGITS = 0, 1, 2  # MORE_FLOATS are added to what is there, and to no bias
# of numbers as two digits each, see armm.kernels
BASE, LARGEST_PAIR, ZERO_DIGIT = np.float32(128), np.float32(127 * 128 - 1), np.float32(128)


def multiplies_digits() -> bool:
    """Whether this processor has the instruction for int8 weights."""
    return WIDE and bool(FEATURES.get("avx512vnni"))


# ---------------------------------------------------------------------- the layout


def pack_floats(weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, K) float32, (N,) or None -> (P, 1 + K, 16) float32; outputs behind the last one are 0."""
    weight = F.pad(weight.detach(), (0, 0, 0, -len(weight) % PANEL))
    begin = weight.new_zeros(len(weight)) if bias is None else F.pad(bias.detach(), (0, len(weight) - len(bias)))
    return torch.cat([begin[:, None], weight], dim=1).unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()


def pack_codes(codes: Tensor) -> Tensor:
    """(N, K) int8 -> (P, 1 + K / 4, 64) int8. The sums begin with what digits above zero add to them."""
    codes = F.pad(codes, (0, -codes.shape[1] % 4, 0, -len(codes) % PANEL))
    begin = (-int(ZERO_DIGIT) * codes.sum(1, dtype=torch.int32)).view(-1, 1, PANEL).view(torch.int8)  # (P, 1, 64)
    panels = codes.view(-1, PANEL, codes.shape[1] // 4, 4).transpose(1, 2).flatten(2)
    return torch.cat([begin, panels], dim=1).contiguous()


def unpack_codes(panels: Tensor, n_out: int, n_in: int) -> Tensor:
    """What `pack_codes` was given."""
    codes = panels[:, 1:].unflatten(2, (PANEL, 4)).transpose(1, 2).flatten(2).flatten(0, 1)
    return codes[:n_out, :n_in].contiguous()


# ------------------------------------------------------------------------- a tile


@intrinsic(prefer_literal=True)
def tile(
    typing: Any, panels: Any, panel: Any, x: Any, stride: Any, n_steps: Any, out: Any, out_stride: Any, rows: Any,
    columns: Any, kind: Any,
) -> Any:  # fmt: skip
    """Products of some rows with some panels that follow each other.

    Args:
        panels, x, out: addresses of the first panel, of the first row's first input, of the first result.
        panel, stride, out_stride: bytes from each panel, row and row of results to the next.
        rows, columns: of the tile. kind: FLOATS, MORE_FLOATS or DIGITS. All literal.
    """
    if not all(isinstance(own, types.IntegerLiteral) for own in (rows, columns, kind)):
        return None
    n_rows, n_columns, which = rows.literal_value, columns.literal_value, kind.literal_value

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if which != DIGITS or multiplies_digits():  # elsewhere nobody calls it
            _write_tile(builder, arguments, n_rows, n_columns, which)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7, rows, columns, kind), codegen


def _write_tile(builder: Any, arguments: Any, n_rows: int, n_columns: int, kind: int) -> None:
    of_digits = kind == DIGITS
    panels, panel, x, stride, n_steps, out, out_stride, *_ = arguments
    i64, i32, i8 = (ir.IntType(bits) for bits in (64, 32, 8))
    number = i32 if of_digits else ir.FloatType()
    sums, line = ir.VectorType(number, PANEL), ir.VectorType(i8, 4 * PANEL)
    multiply = _function(builder.module, of_digits, sums, line)
    prefetch = _declared(builder.module, "llvm.prefetch.p0", ir.VoidType(), [i8.as_pointer(), i32, i32, i32])

    def at(address: Any, offset: int, factor: Any = None) -> Any:
        by = ir.Constant(i64, offset) if factor is None else builder.mul(factor, ir.Constant(i64, offset))
        return builder.add(address, by)

    def load(address: Any, kind: Any) -> Any:
        loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
        loaded.align = 4
        return loaded

    columns = [at(panels, c, panel) for c in range(n_columns)]
    rows = [at(x, r, stride) for r in range(n_rows)]
    results = [[at(at(out, r, out_stride), 4 * PANEL * c) for c in range(n_columns)] for r in range(n_rows)]
    begins = [[load(own if kind == MORE_FLOATS else columns[c], sums) for c, own in enumerate(to)] for to in results]
    entry, loop, end = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(i64)
    step.add_incoming(ir.Constant(i64, 0), entry)
    before = [[builder.phi(sums) for _ in columns] for _ in rows]
    following = at(step, 1)
    weights = []
    for column in columns:
        line_at = at(column, 4 * PANEL, following)
        weights.append(load(line_at, sums))
        ahead = builder.inttoptr(at(line_at, n_columns, panel), i8.as_pointer())
        builder.call(prefetch, [ahead, *(ir.Constant(i32, own) for own in (0, 2, 1))])  # to be read, into the L2 cache
    after = []
    for r, row in enumerate(rows):
        one = builder.insert_element(ir.Constant(sums, ir.Undefined), load(at(row, 4, step), number), i32(0))
        everywhere = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(i32, PANEL), [0] * PANEL))
        after.append([multiply(builder, before[r][c], everywhere, weights[c]) for c in range(n_columns)])
    for r in range(n_rows):
        for c in range(n_columns):
            before[r][c].add_incoming(begins[r][c], entry)
            before[r][c].add_incoming(after[r][c], loop)
    step.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, n_steps), loop, end)
    builder.position_at_end(end)
    for own_after, to in zip(after, results, strict=True):
        for new, place in zip(own_after, to, strict=True):
            builder.store(new, builder.inttoptr(place, sums.as_pointer())).align = 4


def _function(module: Any, of_digits: bool, sums: Any, line: Any) -> Any:
    """How a step's products are added to sums: (builder, sums, inputs, weights) -> sums."""
    name = "llvm.x86.avx512.vpdpbusd.512" if of_digits else "llvm.fma.v16f32"
    taken = line if of_digits and llvm.llvm_version_info[0] >= 22 else sums  # of the two factors
    function = _declared(module, name, sums, [sums, taken, taken])

    def multiply(builder: Any, before: Any, inputs: Any, weights: Any) -> Any:
        if not of_digits:
            return builder.call(function, [inputs, weights, before])
        return builder.call(function, [before, builder.bitcast(inputs, taken), builder.bitcast(weights, taken)])

    return multiply


def _declared(module: Any, name: str, result: Any, kinds: list[Any]) -> Any:
    known = module.globals.get(name)
    return ir.Function(module, ir.FunctionType(result, kinds), name) if known is None else known


# ---------------------------------------------------------------------- the products


@inner
def filled(n: int) -> int:
    """So many outputs, filled up to whole panels."""
    return n + -n % PANEL


@inner
def share(n: int, thread: int, n_threads: int) -> tuple[int, int]:
    """The part of n things that is a thread's: from, and up to."""
    return n * thread // n_threads, n * (thread + 1) // n_threads


def _rows_of(kind: int, n_panels: int) -> Any:
    """A function for all rows of some panels beside each other, a tile after the other."""

    @inner
    def run(panels: int, panel: int, x: int, stride: int, n_steps: int, out: int, out_stride: int, n_rows: int) -> None:
        m = 0
        while n_rows - m >= DEEP:
            at, to = x + m * stride, out + m * out_stride
            tile(panels, panel, at, stride, n_steps, to, out_stride, DEEP, n_panels, kind)  # type: ignore[call-arg]
            m += DEEP
        while m < n_rows:
            at, to = x + m * stride, out + m * out_stride
            tile(panels, panel, at, stride, n_steps, to, out_stride, 1, n_panels, kind)  # type: ignore[call-arg]
            m += 1

    return run


def _product(kind: int) -> Any:
    """A function for the panels from `first` up to `last`, all rows of the widest tiles first."""
    broad, two, one = _rows_of(kind, BROAD), _rows_of(kind, 2), _rows_of(kind, 1)

    @inner
    def run(panels: int, first: int, last: int, n_steps: int, x: np.ndarray, out: np.ndarray) -> None:
        panel, at = 4 * PANEL * (n_steps + 1), first
        stride, out_stride, n_rows = x.strides[0], out.strides[0], len(x)
        while at < last:
            own, to = panels + at * panel, out.ctypes.data + 4 * PANEL * at
            if last - at >= BROAD:
                broad(own, panel, x.ctypes.data, stride, n_steps, to, out_stride, n_rows)
                at += BROAD
            elif last - at >= 2:
                two(own, panel, x.ctypes.data, stride, n_steps, to, out_stride, n_rows)
                at += 2
            else:
                one(own, panel, x.ctypes.data, stride, n_steps, to, out_stride, n_rows)
                at += 1

    return run


_floats, _more_floats = _product(FLOATS), _product(MORE_FLOATS)


@inner
def multiply_floats(panels: int, n_panels: int, x: np.ndarray, out: np.ndarray, thread: int, n_threads: int) -> None:
    """A thread's part of (M, K) x @ weights + bias -> (M, N), N filled up to whole panels.

    panels: address of what `pack_floats` gave.
    """
    first, last = share(n_panels, thread, n_threads)
    _floats(panels, first, last, x.shape[1], x, out)


@inner
def add_floats(out: np.ndarray, x: np.ndarray, panels: np.ndarray) -> None:
    """(M, N) out += (M, K or more) x @ weights, N filled up to whole panels; panels: as `pack_floats` gave them."""
    _more_floats(panels.ctypes.data, 0, len(panels), panels.shape[1] - 1, x, out)


@inner
def split(x: np.ndarray, high: np.ndarray, low: np.ndarray, step: np.ndarray, m: int) -> None:
    """(I,) numbers as integers times a step, of (M,), and each integer as two digits: (I,) uint8."""
    bits, top = x.view(np.int32), np.int32(0)  # those of numbers without their signs are in their order
    for i in range(len(x)):
        top = max(top, bits[i] & np.int32(0x7FFFFFFF))
    largest = np.int32(top).view(np.float32)
    size = largest / LARGEST_PAIR if largest > ZERO else ONE
    for i in range(len(x)):
        whole = rounded(x[i] / size)
        above = rounded(whole / BASE)
        high[i] = np.uint8(np.int32(above + ZERO_DIGIT))
        low[i] = np.uint8(np.int32(whole - BASE * above + ZERO_DIGIT))
    step[m] = size


@scalar
def rounded(x: np.float32) -> np.float32:
    """To the nearest integer, ties to even, of numbers up to a million; compiled to vectors."""
    return (x + ROUND) - ROUND


@inner
def multiply_digits(
    panels: int, digits: np.ndarray, step: np.ndarray, scales: np.ndarray, bias: np.ndarray, out: np.ndarray,
    thread: int, n_threads: int,
) -> None:  # fmt: skip
    """A thread's part of the product of rows of digits with int8 weights -> (M, N) float32.

    Args:
        panels: address of what `pack_codes` gave.
        digits: (2M, K) uint8, high and low ones of each row. step: (M,), what they count.
        scales: (N,) of the weights. bias: (N,), empty for none.
    """
    n_out, n_steps, stride = len(scales), digits.shape[1] // 4, digits.strides[0]
    panel, sums = 4 * PANEL * (n_steps + 1), np.empty((DEEP, BROAD * PANEL), np.int32)
    at, end = share(-(-n_out // PANEL), thread, n_threads)
    while at < end:
        broad, m = end - at >= BROAD, 0
        first, begin = at * PANEL, panels + at * panel
        last = min(first + (BROAD * PANEL if broad else PANEL), n_out)
        while m < len(step):
            rows, results = digits.ctypes.data + 2 * m * stride, sums.ctypes.data
            n = min(len(step) - m, DEEP // 2)
            if n == DEEP // 2:
                if broad:
                    tile(begin, panel, rows, stride, n_steps, results, sums.strides[0], DEEP, BROAD, DIGITS)  # type: ignore[call-arg]
                else:
                    tile(begin, panel, rows, stride, n_steps, results, sums.strides[0], DEEP, 1, DIGITS)  # type: ignore[call-arg]
            elif broad:
                tile(begin, panel, rows, stride, n_steps, results, sums.strides[0], 2, BROAD, DIGITS)  # type: ignore[call-arg]
            else:
                tile(begin, panel, rows, stride, n_steps, results, sums.strides[0], 2, 1, DIGITS)  # type: ignore[call-arg]
            for r in range(n):
                high, low, factor = sums[2 * r], sums[2 * r + 1], step[m + r]
                for o in range(first, last):
                    whole = BASE * np.float32(high[o - first]) + np.float32(low[o - first])
                    out[m + r, o] = whole * factor * scales[o]
                if len(bias):
                    for o in range(first, last):
                        out[m + r, o] += bias[o]
            m += n
        at += BROAD if broad else 1


@together
@inner
def _part_of_product(
    x: np.ndarray, panels: int, scales: np.ndarray, digits: np.ndarray, step: np.ndarray, out: np.ndarray, thread: int,
    n_threads: int, meeting: np.ndarray,
) -> None:  # fmt: skip
    for m in range(thread, len(x), n_threads):
        split(x[m], digits[2 * m], digits[2 * m + 1], step, m)
    meet(meeting, n_threads)
    multiply_digits(panels, digits, step, scales, step[:0], out, thread, n_threads)


@kept
def _multiply(
    x: np.ndarray, panels: int, scales: np.ndarray, digits: np.ndarray, step: np.ndarray, out: np.ndarray,
    n_threads: int,
) -> None:  # fmt: skip
    _part_of_product((x, panels, scales, digits, step, out), n_threads)


def multiply(x: Tensor, panels: Tensor, scales: Tensor) -> Tensor:
    """(M, K) float32 rows with what `pack_codes` gave, and (N,) float32 scales -> (M, N) float32."""
    rows, factors, (m, k) = x.contiguous().numpy(), scales.numpy(), x.shape
    digits, step, out = np.empty((2 * m, k), np.uint8), np.empty(m, np.float32), np.empty((m, len(factors)), np.float32)
    _multiply(rows, panels.data_ptr(), factors, digits, step, out, team_size())
    return torch.from_numpy(out)
