"""A trained model as a folder: `config.json`, `weights.safetensors`, and what its modalities learned. No pickle.

A bundle is written beside its place and moved there whole, so there is never half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from armm.backbones import BackboneConfig
from armm.errors import InputError, nearest
from armm.modality import Modality
from armm.model import AutoregressiveModel
from armm.spec import from_spec, to_spec

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
PRECISIONS = ("float", "bf16", "int8", "int4")


def save(model: AutoregressiveModel, folder: str | Path, about: dict[str, Any] | None = None) -> Path:
    """Write a bundle, replacing one that is there.

    Args:
        about: anything JSON-able to keep beside the model, such as its recipe and scores.

    Raises InputError: the folder cannot be written, or holds something that is not a bundle; the model is quantised.
    """
    from armm.quantization import PackedLinear  # what loads a bundle in float needs none of it

    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise InputError("a quantised model cannot be saved; save the float model, and load it with weights='int8'")
    folder = Path(folder).resolve()  # a link stays, what it points to is replaced
    if folder.exists() and not _may_replace(folder):
        raise InputError(f"{folder} holds files that are no bundle's; choose another folder or empty it")
    description = describe(model)
    config = description["config"] | {"about": about or {}}
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for name, files in description["files"].items():
            for file, content in files.items():
                (beside / f"{name}.{file}").write_bytes(content)
        (beside / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        save_model(model, str(beside / WEIGHTS))
        (beside / WEIGHTS).chmod((beside / CONFIG).stat().st_mode)  # the library writes files for the owner only
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{folder}: cannot write the bundle: {reason}; check the place and its space") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)  # stopped between the two
        for left in (beside, old):
            shutil.rmtree(left, ignore_errors=True)
    return folder


def describe(model: AutoregressiveModel) -> dict[str, Any]:
    """Everything of a model but its weights, in plain types: what `build` makes it of."""
    files = {name: dict(modality.files()) for name, modality in model.modalities.items()}
    config = {
        "format": FORMAT,
        "armm": version("armm"),
        "modalities": {name: to_spec(modality) for name, modality in model.modalities.items()},
        "backbone": to_spec(model.backbone_config),
        "layout": model.grammar.layout,
        "context": model.grammar.context,
        "files": {name: sorted(own) for name, own in files.items()},
    }
    return {"config": config, "files": files}


def _may_replace(folder: Path) -> bool:
    """Whether a folder is empty, or a bundle and nothing else."""
    if not folder.is_dir():
        return False
    present = {path.name for path in folder.iterdir()}
    if not present:
        return True
    try:
        config = read_config(folder)
        own = {f"{name}.{file}" for name, files in config["files"].items() for file in files}
    except (InputError, AttributeError, TypeError):
        return False
    return present <= own | {CONFIG, WEIGHTS}


def find(place: str | Path) -> Path:
    """The bundle that a user means: a bundle, a run folder with `model/`, or a folder of runs (the newest).

    Raises InputError: there is none.
    """
    place = Path(place)
    if not place.exists():
        raise InputError(f"{place} does not exist; name a run folder, its model/ or a bundle (armm list shows runs)")
    for candidate in (place, place / "model"):
        if (candidate / CONFIG).is_file():
            return candidate
    versions = [path.parent.parent for path in place.glob(f"*/model/{CONFIG}")]
    if versions:
        return max(versions, key=lambda path: (len(path.name), path.name)) / "model"
    raise InputError(f"{place} holds no model: expected {CONFIG} in it or in its model/ (armm list shows runs)")


def read_config(folder: Path) -> dict[str, Any]:
    """A bundle's configuration.

    Raises InputError: it is missing, broken, or of another format.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}; the bundle is damaged, write it again") from error
    if not isinstance(config, dict) or "format" not in config:
        raise InputError(f"{path} is not a bundle's configuration; expected the key 'format'")
    if config["format"] != FORMAT:
        raise InputError(
            f"{path} has bundle format {config['format']!r}, this armm {version('armm')} reads format {FORMAT}; "
            f"install the armm that wrote it ({config.get('armm', 'unknown')})"
        )
    missing = [key for key in ("modalities", "backbone", "layout", "context", "files") if key not in config]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; the bundle is damaged, write it again")
    return config


def content_hash(folder: str | Path) -> str:
    """16 hexadecimal digits of a SHA-256 over the names and contents of a bundle's files.

    Raises InputError: a file cannot be read.
    """
    total = hashlib.sha256()
    folder = Path(folder)
    try:
        for path in sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(os.fsencode(path.name) + f"\0{digest}\n".encode())
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}; check the bundle") from error
    return total.hexdigest()[:16]


def load(place: str | Path, device: str = "cpu", weights: str = "float") -> AutoregressiveModel:
    """The model of a bundle, in evaluation mode.

    Args:
        weights: `float` as stored, or the large matrices in `bf16`, `int8` or `int4`: for generation and scores only.

    Raises InputError: there is no bundle, or it is damaged or of another format; weights that it cannot have.
    """
    if weights not in PRECISIONS:
        raise InputError(f"weights is {weights!r}, expected {', '.join(PRECISIONS)}{nearest(weights, PRECISIONS)}")
    folder = find(place)
    config = read_config(folder)
    try:
        model = build({"config": config, "files": _files(folder, config)}, str(folder))
    except (TypeError, KeyError, AttributeError) as error:  # valid JSON, but not what `save` wrote
        raise InputError(
            f"{folder / CONFIG} describes no model ({error!r}); the bundle is damaged, copy it again"
        ) from error
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"{path} is missing; the bundle is not complete, copy it again")
    try:
        load_model(model, str(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} does not hold this model's weights: {reason}; copy the bundle again") from error
    try:
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"there is no device {device!r} here ({reason}); leave it out to run on the CPU") from error
    if weights == "float":
        return model
    from armm.quantization import quantise  # only those who ask for it wait for it

    assert weights in ("bf16", "int8", "int4")
    return quantise(model, weights).eval()


def _files(folder: Path, config: dict[str, Any]) -> dict[str, dict[str, bytes]]:
    """What modalities learned.

    Raises InputError: it is missing.
    """
    found: dict[str, dict[str, bytes]] = {}
    for name in config["modalities"]:
        found[name] = {}
        for file in config["files"].get(name, []):
            try:
                found[name][file] = (folder / f"{name}.{file}").read_bytes()
            except OSError as error:
                raise InputError(f"{folder / f'{name}.{file}'} is missing; the bundle is not complete") from error
    return found


def build(description: dict[str, Any], place: str) -> AutoregressiveModel:
    """The model that `describe` describes, its weights still random.

    place: where the description is from.

    Raises InputError: it cannot be built.
    """
    config = description["config"]
    try:
        modalities = {}
        for name, spec in config["modalities"].items():
            modality, files = from_spec(spec, Modality), description["files"].get(name)
            modalities[name] = modality.with_files(files) if files else modality
        backbone = from_spec(config["backbone"], BackboneConfig)
        return AutoregressiveModel(modalities, backbone, config["layout"], config["context"])
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
