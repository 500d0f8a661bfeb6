"""Threads that go through one compiled function side by side, meeting between its parts.

A step of a small model is a hundred pieces of a few microseconds: too short to hand each to a pool of threads. So every
thread runs the whole function, does its share of each piece, and waits at the end of it for the others. The threads are
those of torch's own operators (OpenMP's): after every operator they look out for the next one for milliseconds, and
would take the processor from threads of ours.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from armm.compiled import inner

ARRIVED, ROUND, BROKEN, SIZE = 0, 8, 16, 24  # places in what threads meet at, a cache line each
PATIENCE = 2000  # looks before the others are given the processor
PARALLEL, THREAD, N_THREADS = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"  # of OpenMP
BYTES, NUMBER, PLACE = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)


def team_size() -> int:
    """As many threads as torch's operators use."""
    return torch.get_num_threads()


def _tell_compiler() -> None:
    """Let compiled functions call torch's OpenMP; where it has another one, this thread does everything."""
    try:
        library = ctypes.CDLL("libgomp.so.1")  # torch has loaded it: the same one
        functions: list[Any] = [getattr(library, name) for name in (PARALLEL, THREAD, N_THREADS)]
    except (OSError, AttributeError):
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        functions = [
            ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(
                lambda function, data, n, flags: run(function)(data)
            ),
            ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0),
            ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1),
        ]
        _KEPT.extend(functions)
    for name, function in zip((PARALLEL, THREAD, N_THREADS), functions, strict=True):
        llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)


_KEPT: list[Any] = []  # what compiled code may call for as long as there is a process
_tell_compiler()


def together(function: Callable[..., None]) -> Callable[[tuple[Any, ...], int], None]:
    """A compiled function that lets n threads, this one among them, go through a compiled function.

    function: takes what is in the tuple of arguments, then thread, n_threads and meeting; returns nothing.
    """

    @intrinsic
    def fork(typing: Any, arguments: Any, n_threads: Any, meeting: Any) -> Any:
        each = (*arguments.types, types.intp, types.intp, meeting)
        types.Dispatcher(function).get_call_type(typing, each, {})  # compiles it

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            compiled = function.overloads[each]  # type: ignore[attr-defined]
            context.add_linking_libs([compiled.library])
            data = context.make_tuple(builder, types.Tuple((arguments, meeting)), [values[0], values[2]])
            place = cgutils.alloca_once_value(builder, data)
            in_thread = _in_thread(context, builder.module, compiled, place.type, len(arguments.types))
            kind = ir.FunctionType(ir.VoidType(), [in_thread.type, BYTES, NUMBER, NUMBER])
            parallel = cgutils.get_or_insert_function(builder.module, kind, PARALLEL)
            threads = builder.trunc(values[1], NUMBER)
            builder.call(parallel, [in_thread, builder.bitcast(place, BYTES), threads, NUMBER(0)])
            return context.get_dummy_value()

        return types.void(arguments, n_threads, meeting), codegen

    @inner
    def run(arguments: tuple[Any, ...], n_threads: int) -> None:
        meeting = np.zeros(SIZE, np.int64)
        fork(arguments, n_threads, meeting)  # type: ignore[call-arg]
        if meeting[BROKEN]:
            raise MemoryError("there was no room for what a thread works on")

    return run


def _in_thread(context: Any, module: Any, compiled: Any, place: Any, n_arguments: int) -> Any:
    """A function for OpenMP to call in every thread, with a pointer to (arguments, meeting)."""
    kind = ir.FunctionType(ir.VoidType(), [BYTES])
    in_thread = ir.Function(module, kind, module.get_unique_name("in_thread"))
    in_thread.linkage = "internal"
    builder = ir.IRBuilder(in_thread.append_basic_block())
    arguments, meeting = cgutils.unpack_tuple(builder, builder.load(builder.bitcast(in_thread.args[0], place)), 2)
    numbers = []
    for name in (THREAD, N_THREADS):
        asks = cgutils.get_or_insert_function(module, ir.FunctionType(NUMBER, []), name)
        numbers.append(builder.sext(builder.call(asks, []), PLACE))
    given = [*cgutils.unpack_tuple(builder, arguments, n_arguments), *numbers, meeting]
    status, _ = context.call_internal_no_propagate(builder, compiled.fndesc, compiled.signature, given)
    with builder.if_then(status.is_error, likely=False):  # nobody waits for a thread that has gone
        meets = context.make_array(compiled.signature.args[-1])(context, builder, meeting)
        builder.store(PLACE(1), builder.gep(meets.data, [PLACE(BROKEN)]))
    builder.ret_void()
    return in_thread


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
