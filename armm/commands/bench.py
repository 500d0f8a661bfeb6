"""`armm bench RUN`: how fast a model samples on this machine."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

from torch import nn

from armm import bundle
from armm.commands import machine
from armm.commands.options import OptionParser
from armm.errors import InputError
from armm.generation import Sample, generate, stream
from armm.generation.requests import ends_by_itself
from armm.memory import keep_freed_memory
from armm.model import AutoregressiveModel
from armm.prepacking import PrepackedLinear, prepack

DEFAULT_LENGTH = 256  # symbols of a sample, where documents have no end of their own


@dataclass(frozen=True)
class Measured:
    """What one batch size reaches.

    Attributes:
        symbols: drawn per second, structure included. documents: finished per second.
        natural: natural units of each modality per second (bytes, pixels, audio samples).
        first: seconds from the call to the first symbol, the prompt's reading included.
        bandwidth: share of the machine's memory bandwidth that reading the weights takes.
        memory: the most bytes resident.
    """

    rows: int
    exact: bool
    symbols: float
    documents: float
    natural: dict[str, float]
    first: float
    bandwidth: float
    memory: int


def parser() -> OptionParser:
    p = OptionParser("bench", "Measure how fast a model samples here. The last line is one JSON object.")
    p.add_argument("run", help="a run folder, its model/, or a bundle")
    p.add_argument("--rows", default="1,16", help="batch sizes (default 1,16)")
    p.add_argument("--seconds", type=float, default=5.0, help="time for each measurement (default 5)")
    p.add_argument(
        "--max-symbols", type=int, help=f"symbols of a sample at most (default {DEFAULT_LENGTH} where needed)"
    )
    p.add_argument(
        "--weights", choices=["float", "bf16", "int8", "int4"], default="float", help="how matrices are stored"
    )
    p.add_argument("--device", default="cpu", help="where to run, such as cuda (default cpu)")
    return p


def run(arguments: list[str]) -> int:
    """Run `armm bench`.

    Raises InputError: whatever is not right about the model or the options.
    """
    options = parser().parse_args(arguments)
    sizes = [int(size) for size in options.rows.split(",") if size.strip().isdecimal()]
    if not sizes or min(sizes) < 1 or len(sizes) != len(options.rows.split(",")):
        raise InputError(f"--rows {options.rows}: expected batch sizes such as 1,16")
    if not options.seconds > 0:
        raise InputError(f"--seconds is {options.seconds:g}, it must be greater than 0")
    keep_freed_memory()
    model = prepack(bundle.load(options.run, options.device, options.weights))
    limit = options.max_symbols
    if limit is None and not ends_by_itself(model):
        limit = DEFAULT_LENGTH
    device = model.begin.device
    bandwidth = machine.read_bandwidth(device)
    print(f"{machine.describe(device)}; memory is read at {bandwidth / 1e9:.1f} GB/s")
    print(f"{'rows':>4} {'exact':>6} {'symbols/s':>10} {'first ms':>9} {'bandwidth':>9} {'memory':>9}  per second")
    results = []
    for rows in sizes:
        for exact in (True, False):
            found = measure(model, rows, exact, limit, options.seconds, bandwidth)
            results.append(found)
            print(line(model, found))
    print(json.dumps({"run": str(options.run), "weights": options.weights, "results": [asdict(r) for r in results]}))
    return 0


def measure(
    model: AutoregressiveModel, rows: int, exact: bool, limit: int | None, seconds: float, bandwidth: float
) -> Measured:
    """Sample for some seconds, at least one whole batch."""
    list(generate(model, n=rows, seed=-1, max_symbols=limit, exact=exact, batch_size=rows))  # compiles what is compiled
    began = time.perf_counter()
    next(iter(stream(model, max_symbols=limit, exact=exact)))
    first = time.perf_counter() - began
    samples: list[Sample] = []
    spent = 0.0

    def draw() -> None:
        nonlocal spent
        seed = 0
        began = time.perf_counter()
        while spent < seconds:
            samples.extend(generate(model, n=rows, seed=seed, max_symbols=limit, exact=exact, batch_size=rows))
            seed, spent = seed + 1, time.perf_counter() - began

    memory = machine.peak_memory(draw, model.begin.device)
    n_symbols = sum(len(sample.log_probs) for sample in samples)
    natural: dict[str, float] = {}
    n_read = 0.0
    for sample in samples:
        for segment in sample.document:
            modality = model.modalities[segment.modality]
            n = modality.n_bits_per(segment)
            natural[segment.modality] = natural.get(segment.modality, 0.0) + n / spent
            n_read += segment.n_units * size(model.backbone) + segment.length * size(model.heads[segment.modality])
    share = n_read / rows / spent / bandwidth
    return Measured(rows, samples[0].exact, n_symbols / spent, len(samples) / spent, natural, first, share, memory)


def size(module: nn.Module) -> int:
    """Bytes of a module's matrices."""
    plain = sum(x.nbytes for x in (*module.parameters(), *module.buffers()) if x.dim() > 1)
    return plain + sum(part.packed_bytes for part in module.modules() if isinstance(part, PrepackedLinear))


def line(model: AutoregressiveModel, found: Measured) -> str:
    """A row of the table."""
    parts = []
    for name, rate in found.natural.items():
        modality = model.modalities[name]
        parts.append(f"{rate:,.0f} {modality.bits_per}s of {name}")
        if sample_rate := getattr(modality, "sample_rate", 0):
            parts.append(f"{rate / sample_rate:.2f} x real time")
    if not any(modality.ended for modality in model.modalities.values()):
        parts.append(f"{found.documents:,.1f} documents")
    return (
        f"{found.rows:>4} {'yes' if found.exact else 'no':>6} {found.symbols:>10,.0f} {1e3 * found.first:>9.1f} "
        f"{found.bandwidth:>9.0%} {found.memory / 2**20:>6,.0f} MiB  {', '.join(parts)}"
    )
