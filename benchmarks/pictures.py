"""A model of images beside PNG and lossless WebP: bits a dimension of the test split.

    python benchmarks/pictures.py RUN [--path DIR]

RUN is a run of `armm train image/sprites` or of any recipe of images; its test bits are read from metrics.json, the
files are made of the same pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from armm import bundle
from armm.datasets import Sprites
from armm.datasets.codecs import codec_bits


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="folder of a run")
    p.add_argument("--path", type=Path, default=None, help="the pictures, as --data.path had them")
    options = p.parse_args(arguments)
    metrics = json.loads((options.run / "metrics.json").read_text(encoding="utf-8"))
    model = bundle.load(options.run)
    (name,) = model.modalities
    test = Sprites().load(model.modalities, options.path, "fail").test
    images = [test.item(i, 0)[name] for i in range(len(test))]
    rows = {"model": metrics["test"][name]["bits_per_dim"], **codec_bits(images)}
    print(f"| {len(images)} test pictures | bits/dim |\n|---|---|")
    for what, bits in sorted(rows.items(), key=lambda row: row[1]):
        print(f"| {what} | {bits:.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
