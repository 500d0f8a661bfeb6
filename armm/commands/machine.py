"""What the machine can do, and what a piece of work took of it."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

GIB = 1 << 30
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def describe(device: torch.device) -> str:
    """Processor or accelerator, threads, version of torch: what a number has to be read with."""
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else processor()}, {threads}"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_bandwidth(device: torch.device, n_bytes: int = GIB, repetitions: int = 7) -> float:
    """Bytes per second at which memory can be read: the best of several sums over a float32 tensor, all threads."""
    data = torch.ones(n_bytes // 4, device=device)
    best = float("inf")
    for _ in range(repetitions):
        settle(device)
        begin = perf_counter()
        data.sum()
        settle(device)
        best = min(best, perf_counter() - begin)
    return n_bytes / best


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that were resident while `run` ran: of the process, or of the accelerator's memory.

    On Linux the process's high-water mark is reset before. Elsewhere it is that of the whole process so far.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    try:
        RESET.write_text("5")  # proc(5): resets VmHWM
    except OSError:
        run()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    run()
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
