"""`armm score RUN FILE...`: how many bits a model needs for files, or for the documents of a manifest."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from armm import bundle
from armm.batching import collate
from armm.commands.options import OptionParser
from armm.commands.prompting import about_file, modality_for, parse_prompts
from armm.datasets.documents import Documents
from armm.datasets.files import existing
from armm.datasets.manifest import find_volumes, read_volumes
from armm.errors import InputError
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.windows import windows

WINDOW = 1024  # units of a window of longer documents
BATCH = 4  # windows side by side


def parser() -> OptionParser:
    p = OptionParser("score", "Bits of files under a model.")
    p.add_argument("run", help="a run folder, its model/, or a bundle")
    p.add_argument("files", nargs="*", type=Path, metavar="FILE")
    p.add_argument("--manifest", type=Path, metavar="FILE", help="score documents: a .jsonl manifest, or a .tar shard")
    p.add_argument(
        "--given",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what comes before, unscored, such as label=3",
    )
    p.add_argument(
        "--window",
        type=int,
        default=WINDOW,
        help=f"units of a window of longer files, scored on its second half (default {WINDOW}, or the context if less)",
    )
    p.add_argument("--json", action="store_true", help="print one JSON object per file")
    p.add_argument("--device", default="cpu", help="where to run, such as cuda (default cpu)")
    return p


def run(arguments: list[str]) -> int:
    """Run `armm score`.

    Raises InputError: a file or model that cannot be read, or that do not fit each other.
    """
    options = parser().parse_args(arguments)
    if options.window < 2:
        raise InputError(f"--window is {options.window}, it must be at least 2")
    model = bundle.load(options.run, options.device)
    given = [segment.as_condition() for segment in parse_prompts(model, options.given, "--given")]
    if bool(options.files) == bool(options.manifest):
        raise InputError("name each FILE to score, or the documents of a --manifest")
    if options.manifest is not None:
        return score_manifest(model, given, options.manifest, options.window, options.json)
    for path in options.files:
        name = modality_for(model, path)
        check_layout(model, [*(segment.modality for segment in given), name])
        with about_file(path):
            segment = model.modalities[name].encode(model.modalities[name].load(path))
            result = score(model, [*given, segment], options.window)
        if options.json:
            print(json.dumps({"file": str(path), **result}))
        else:
            unit = model.modalities[name].bits_per
            print(f"{path}: {result[f'bits_per_{unit}']:.4f} bits/{unit}, {result['bits']:,.1f} bits", end="")
            print(f", structure {result['structure_bits']:,.1f} bits" if result["structure_bits"] else "")
    return 0


def check_layout(model: AutoregressiveModel, names: list[str]) -> None:
    """Raises InputError: the model's documents are of other modalities than these."""
    layout = model.grammar.layout
    if layout is None or names == layout:
        return
    wanted, found = ", ".join(layout), ", ".join(names)
    raise InputError(
        f"this model's documents are {wanted}, found {found}; give what comes before a file with --given NAME=VALUE"
    )


def score_manifest(model: AutoregressiveModel, given: Document, path: Path, window: int, as_json: bool) -> int:
    """Print the bits of every document, by modality."""
    if given:
        raise InputError('--given goes with files; in a manifest, write what is given with "loss": false')
    items, _ = read_volumes(find_volumes(existing(path)), model.modalities, "fail")
    documents = Documents(items, model.grammar, ())
    for index in range(len(items)):
        document, where = documents.document(index, index), items.where(index)
        with about_file(where):
            result = score_document(model, document, window)
        if as_json:
            print(json.dumps({"document": where, **result}))
            continue
        named = ((name, *next(iter(own.items()))) for name, own in result["modalities"].items())
        bits = [f"{name} {value:.4f} {key.replace('_', ' ')}" for name, key, value in named]
        bits.append(f"structure {result['structure_bits']:,.1f} bits")
        print(f"{where}: {', '.join(bits)}; {result['bits']:,.1f} bits")
    return 0


@torch.inference_mode()
def score(model: AutoregressiveModel, document: Document, window: int = WINDOW) -> dict[str, Any]:
    """Bits of a document's last segment, the only one that is scored, and of its structure.

    Args:
        window: units at a time, no more than the context has room for; each window but the first is scored on its
            second half.
    """
    name = document[-1].modality
    payload, structure = nats_of(model, document, window)
    return {**_bits(model, name, payload[name], document[-1:]), "structure_bits": structure / math.log(2)}


@torch.inference_mode()
def score_document(model: AutoregressiveModel, document: Document, window: int = WINDOW) -> dict[str, Any]:
    """Bits of what is scored in a document: by modality, of its structure, and of all."""
    payload, structure = nats_of(model, document, window)
    scored = [s for s in document if s.n_given < max(s.n_units, 1)]
    names = dict.fromkeys(segment.modality for segment in scored)
    return {
        "modalities": {n: _bits(model, n, payload[n], [s for s in scored if s.modality == n]) for n in names},
        "structure_bits": structure / math.log(2),
        "bits": (math.fsum(payload.values()) + structure) / math.log(2),
    }


def _bits(model: AutoregressiveModel, name: str, nats: float, segments: Document) -> dict[str, float]:
    modality = model.modalities[name]
    return {
        f"bits_per_{modality.bits_per}": nats / math.log(2) / max(sum(map(modality.n_bits_per, segments)), 1),
        f"nats_per_{modality.nats_per}": nats / max(sum(map(modality.n_nats_per, segments)), 1),
        "bits": nats / math.log(2),
    }


def nats_of(model: AutoregressiveModel, document: Document, window: int) -> tuple[dict[str, float], float]:
    """Nats of the payload by modality, and of the structure."""
    grammar = model.grammar
    pieces = windows(document, grammar, window)
    payload, structure = dict.fromkeys(model.modalities, 0.0), 0.0
    for first in range(0, len(pieces), BATCH):
        some = pieces[first : first + BATCH]
        batch = collate(some, grammar).to(model.begin.device)
        log_probs = model.log_prob(batch)
        for name, segment in batch.segments.items():
            payload[name] -= float((log_probs.payload[name] * segment.weights[..., None]).sum())
        structure += float(log_probs.scored(batch)[1])
        # control symbols stand in every window: the beginnings count in the first, the document's end in the last
        control = log_probs.control.view(len(some), log_probs.control.numel() // len(some))
        begun, ended = 0 if first else 1, len(some) - (first + BATCH >= len(pieces))
        structure += float(control[begun:, :-1].sum()) + float(control[:ended, -1:].sum())
    return payload, structure
