"""What a run leaves behind: scores, a bundle that is always whole, and samples to look at."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from armm import bundle
from armm.errors import InputError
from armm.generation import generate
from armm.model import AutoregressiveModel
from armm.sequence import Document
from armm.training.data import DataModule
from armm.training.loading import conditions_of
from armm.training.loggers import Board, sparing
from armm.training.module import GenerativeModule
from armm.training.ranks import data_rank
from armm.training.speed import SpeedMonitor


def write_json(path: Path, content: Any) -> None:
    """Write a file that is never seen half-written."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def clear_away(folder: Path) -> None:
    """Remove what a process that was killed left half-written; a bundle that it had moved aside goes back."""
    for path in folder.glob(".model.*.old"):
        if not (folder / "model").exists():
            path.replace(folder / "model")
    for path in (*folder.glob(".model.*"), *folder.glob(".metrics.json.*")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


class Recorder(L.Callback):
    """Keeps `model/` (a bundle) and `metrics.json` in the run's folder, at every validation, at the end and on Ctrl-C.

    Args:
        folder: of the run.
        recipe: its name, for the record.
        seed: of the run, for the record. speed: what measures it, for the record.
        precision: why it was chosen, for the record.
    """

    def __init__(
        self,
        folder: Path,
        recipe: str,
        seed: int | None,
        speed: SpeedMonitor | None = None,
        precision: str | None = None,
    ) -> None:
        self.folder, self.recipe, self.seed = folder, recipe, seed
        self.speed, self.precision = speed, precision
        self.interrupted = False
        self.validated_at = -1  # the step of the latest validation
        self._began: float | None = None
        self.training_seconds = 0.0

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._began = time.perf_counter()
        if trainer.is_global_zero:
            clear_away(self.folder)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._record_fit(trainer, module)
        self._began = None

    def state_dict(self) -> dict[str, Any]:
        self._stop_clock()
        return {"training_seconds": self.training_seconds, "validated_at": self.validated_at, "recipe": self.recipe}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.training_seconds, self.validated_at = state_dict["training_seconds"], state_dict["validated_at"]
        self.recipe = state_dict["recipe"]

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validated_at = trainer.global_step
        try:
            self._record_fit(trainer, module)
        except (InputError, OSError) as error:  # a full disk, perhaps for a while; at the end there is no other chance
            print(f"\n{error}; training goes on", file=sys.stderr)

    def on_test_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.record(trainer, module)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            self.interrupted = True
            # the processes of a sharded model may not all be here; its checkpoint can be made a bundle
            if not (isinstance(module, GenerativeModule) and module.sharded):
                self._record_fit(trainer, module)

    def _record_fit(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write, with the seconds so far while training runs."""
        self._stop_clock()
        self.record(trainer, module)

    def _stop_clock(self) -> None:
        """Add the time since it was last looked at."""
        if self._began is not None:
            now = time.perf_counter()
            self.training_seconds, self._began = self.training_seconds + now - self._began, now

    def record(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the bundle and the scores so far."""
        if not isinstance(module, GenerativeModule) or module.net is None:
            return
        with module.ema.lending(module) if module.ema else nullcontext():
            if module.sharded:  # all of them bring it together, before the first one writes
                self._write(trainer, module, module.sharded.whole_model(module.model))
            elif trainer.is_global_zero:
                self._write(trainer, module, module.model)

    def _write(self, trainer: L.Trainer, module: GenerativeModule, model: AutoregressiveModel | None) -> None:
        if model is None:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        content = {
            "recipe": self.recipe,
            "seed": self.seed,
            "training_seconds": round(self.training_seconds, 2),
            "n_parameters": module.model.n_parameters,
            "symbols_seen": module.n_seen * data_rank(trainer).n_ranks,  # about; others' batches are of like size
            "steps": trainer.global_step,
            "versions": {
                **{name: version(name) for name in ("armm", "torch", "lightning")},
                "python": platform.python_version(),
            },
            "precision": {"used": str(trainer.precision)} | ({"reason": self.precision} if self.precision else {}),
            **({"speed": self.speed.summary(), "history": self.speed.history} if self.speed else {}),
            **module.metrics,
            **({"diagnostics": module.diagnostics} if module.diagnostics else {}),
            **({"left_out": data.n_left_out} if isinstance(data, DataModule) and data.n_left_out else {}),
            **({"skipped_steps": module.skipped_steps} if module.skipped_steps else {}),
        }
        bundle.save(model, self.folder / "model", about=content)
        write_json(self.folder / "metrics.json", content)


class SampleLogger(L.Callback):
    """Logs samples to TensorBoard at every validation, but not those of a model that is dealt out over processes.

    Args:
        n: how many. seed: of the samples; the same at every validation, so that they can be compared.
        max_units: of each, where documents have no end of their own: characters enough to read, sound enough to hear.
    """

    def __init__(self, n: int = 8, seed: int = 0, max_units: int = 300) -> None:
        self.n, self.seed, self.max_units = n, seed, max_units

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.sanity_checking or trainer.state.fn != "fit" or not boards or not trainer.is_global_zero:
            return
        assert isinstance(module, GenerativeModule)
        if module.sharded:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        prompts = conditions(data, self.n) if isinstance(data, DataModule) else None
        model = module.model
        longest = self.max_units * max(m.unit_symbols for m in model.modalities.values())
        samples = generate(
            model,
            prompts,
            samples=[(i if prompts else 0, i) for i in range(len(prompts or range(self.n)))],
            prompt_complete=prompts is not None,
            seed=self.seed,
            max_symbols=None if has_fixed_length(model) else longest,
            batch_size=self.n,
        )
        with sparing(boards[0]) if isinstance(boards[0], Board) else nullcontext():
            log_samples(boards[0].experiment, model, [s.document for s in samples], trainer.global_step)


def has_fixed_length(model: AutoregressiveModel) -> bool:
    """Whether the headers say how long every segment is, as those of images do."""
    modalities = model.modalities.values()
    return all(not m.ended and m.n_units(m.header((0,) * len(m.header_sizes))) is not None for m in modalities)


def conditions(data: DataModule, n: int) -> list[Document] | None:
    """What some validation documents begin with that is given: prompts to sample after."""
    documents = [data.val.document(index, index) for index in range(min(n, len(data.val)))]
    given = [conditions_of(document) for document in documents]
    prompts = [own if data.val.grammar.fits(own) else [] for own in given]
    return prompts if any(prompts) else None


def log_samples(board: Any, model: AutoregressiveModel, documents: list[Document], step: int) -> None:
    """Show the segments of documents, by modality."""
    for name, modality in model.modalities.items():
        segments = [segment for document in documents for segment in document if segment.modality == name]
        if not segments:
            continue
        preview = modality.preview([modality.decode(segment) for segment in segments])
        tag = f"samples/{name}"
        if preview.kind == "image":
            board.add_image(tag, preview.data, step, dataformats="HWC")
        elif preview.kind == "audio":
            board.add_audio(tag, torch.from_numpy(preview.data)[None], step, preview.sample_rate)
        else:
            # TensorBoard takes no bytes that are no characters
            text = preview.data.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            board.add_text(tag, f"```\n{text}\n```", step)
