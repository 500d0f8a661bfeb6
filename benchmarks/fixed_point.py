"""How many passes the fixed point takes for a row of an image, a patch or a frame, by what is guessed at first.

    python benchmarks/fixed_point.py RUN [--n 1,16]

Guessing is not left to whether it pays: every unit is guessed. The last pass, which changes nothing, counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from armm import bundle
from armm.generation import FixedPoint, Hold, Proposer, UnitAbove, generate, units
from armm.generation.proposers import UnitPace

PROPOSERS: tuple[Proposer, ...] = (FixedPoint(), UnitAbove(), Hold())
counted: list[int] = []


class Always(UnitPace):
    """Guesses every unit, and counts passes of all of them."""

    def __init__(self) -> None:
        super().__init__(passes=counted)

    def choose(self) -> bool:
        return True


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="a run folder, its model/, or a bundle")
    p.add_argument("--n", default="1,16", help="samples at once (default 1,16)")
    options = p.parse_args(arguments)
    model = bundle.load(bundle.find(options.run))
    units.UnitPace = Always  # type: ignore[misc]
    print("| samples at once | first guess | passes a unit | most | seconds |\n|---|---|---|---|---|")
    for n in map(int, options.n.split(",")):
        for proposer in PROPOSERS:
            counted.clear()
            began = time.perf_counter()
            list(generate(model, n=n, seed=0, proposer=proposer, fast=False, batch_size=n))
            seconds = time.perf_counter() - began
            mean = sum(counted) / max(len(counted), 1)
            print(
                f"| {n} | {type(proposer).__name__} | {mean:.1f} | {max(counted, default=0)} | {seconds:.1f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
