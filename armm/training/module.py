"""One LightningModule for every modality: the loss is nats per symbol, the metrics are bits in natural units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from armm.backbones import BackboneConfig, Transformer
from armm.errors import InputError
from armm.modality import Modality
from armm.model import AutoregressiveModel, LogProbs
from armm.sequence import Batch
from armm.training.data import STRUCTURE, Counts, DataModule
from armm.training.ema import EMA
from armm.training.optim import Optimization, build
from armm.training.schedule import progress_of


class GenerativeModule(L.LightningModule):
    """Trains any combination of modalities, heads and backbone.

    Args:
        modalities: by name. A modality that learns a vocabulary learns it from the training data.
        backbone: which backbone.
        layout: the modalities of every document, in order; none for free documents.
        context: at most so many units in a document; no limit by default.
        optimization: rates, decay and schedule.
        compile: compile the training step's forward pass with torch.compile; minutes on a CPU.
        weights: of each modality's symbols in the loss; 1 by default.
    """

    def __init__(
        self,
        modalities: dict[str, Modality],
        backbone: BackboneConfig = Transformer(),  # noqa: B008 - frozen
        layout: list[str] | None = None,
        context: int | None = None,
        optimization: Optimization = Optimization(),  # noqa: B008 - frozen
        weights: dict[str, float] | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.modalities: Mapping[str, Modality] = modalities
        self.backbone_config, self.layout, self.context = backbone, layout, context
        self.optimization, self.weights = optimization, weights or {}
        for name, weight in self.weights.items():
            if name not in modalities or weight < 0:
                known = ", ".join(modalities)
                raise InputError(
                    f"model.weights.{name} is {weight}; name a modality ({known}) and give it a weight of at least 0"
                )
        if not any(self.weights.get(name, 1.0) for name in modalities):
            raise InputError("model.weights are all 0, so nothing is left to learn; give a modality a weight above 0")
        if STRUCTURE in modalities:
            raise InputError(f"{STRUCTURE!r} cannot name a modality: the bits of control symbols are reported under it")
        self.net: AutoregressiveModel | None = None
        self.ema = EMA(optimization.ema) if optimization.ema else None
        self.compile_step = compile
        self._compiled: Callable[..., LogProbs] | None = None
        self.n_seen = 0
        self.metrics: dict[str, dict[str, dict[str, float]]] = {"val": {}, "test": {}}
        self._window_count = torch.zeros(())
        self._sums: dict[str, list[float]] = {}

    @property
    def model(self) -> AutoregressiveModel:
        """The model; there once the data has been seen, since a vocabulary may come from it."""
        assert self.net is not None, "the model is built when fit, validate or test begins"
        return self.net

    # -------------------------------------------------------------- set-up

    def prepare(self, data: DataModule) -> None:
        """Load the data and build the model for it; both stay as they are if that has been done.

        Raises InputError: data or a model that are not right, or that do not fit each other.
        """
        if self.net is None:
            fitted = data.fit_modalities(self.modalities)
            net = AutoregressiveModel(fitted, self.backbone_config, self.layout, self.context)
            data.attach(net.grammar)
            for name in fitted:
                net.head(name).set_unigram(data.unigram(name))
            self.net = net
        elif data.grammar is None:
            data.fit_modalities(self.model.modalities)
            data.attach(self.model.grammar)

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DataModule), "train with armm.training.DataModule"
        self.prepare(data)

    def configure_callbacks(self) -> list[L.Callback]:
        return [self.ema] if self.ema else []

    def configure_optimizers(self) -> Any:
        optimizer = build(self.model, self.optimization)
        progress = progress_of(self.trainer)
        schedule = LambdaLR(optimizer, lambda step: self.optimization.factor(*progress(step)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ------------------------------------------------------------ training

    def loss_sum(self, batch: Batch, nats: LogProbs) -> tuple[Tensor, Tensor]:
        """Weighted nats of everything that is scored, and the weighted number of symbols."""
        total = -nats.control.sum()
        n_symbols = torch.tensor(float(nats.control.numel()), device=total.device)
        for name, segment in batch.segments.items():
            weight = self.weights.get(name, 1.0)
            total = total - weight * (nats.payload[name] * segment.weights[..., None]).sum()
            n_symbols = n_symbols + weight * segment.scored().sum()
            for structure, scale in ((nats.decisions, segment.weights), (nats.headers, segment.weights[:, :1])):
                if name in structure:
                    total = total - weight * (structure[name] * scale).sum()
        return total, n_symbols

    def training_step(self, data: tuple[Batch, Counts], index: int) -> Tensor:
        batch, _ = data
        nats = self.log_prob(batch)
        total, n_symbols = self.loss_sum(batch, nats)
        if not total.isfinite():
            raise InputError(
                f"the loss is {float(total)} at step {self.trainer.global_step}; lower model.optimization.lr or muon_lr"
            )
        self._window_count = self._window_count.to(n_symbols) + n_symbols.detach()
        self.n_seen += int(sum(segment.known.sum() for segment in batch.segments.values()))
        mean = total.detach() / n_symbols.clamp(min=1e-9)  # a batch may hold conditions only
        if self.trainer.global_step % 10 == 0 or (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.log("train/nats", mean, prog_bar=True, batch_size=batch.n_rows)  # 1 ms, where small steps take 30
        # the sum, here; `on_before_optimizer_step` divides by the count of the whole step. The factor undoes the
        # Trainer's division by the number of accumulated batches. Embedders of absent modalities join at weight 0.
        if self.trainer.world_size > 1:
            total = total + 0.0 * sum(parameter.sum() for parameter in self.idle_parameters(batch))
        return (total + self.penalty(batch, nats)) * self.trainer.accumulate_grad_batches

    def log_prob(self, batch: Batch) -> LogProbs:
        """The model's, for training: compiled if asked for, with normalisers if they are penalised."""
        if self.compile_step and self._compiled is None:
            self._compiled = torch.compile(self.model.log_prob)
        return (self._compiled or self.model.log_prob)(batch, normalisers=self.optimization.z_loss > 0)

    def penalty(self, batch: Batch, nats: LogProbs) -> Tensor:
        """z-loss, summed like the nats; it is in no reported number."""
        total = torch.zeros((), device=self.device)
        for name, normaliser in nats.normalisers.items():
            weight = self.weights.get(name, 1.0) * self.optimization.z_loss
            total = total + weight * (normaliser.square() * batch.segments[name].scored()).sum()
        return total

    def idle_parameters(self, batch: Batch) -> list[Tensor]:
        """Those that take no part in a batch; with several ranks every parameter must have a gradient."""
        model = self.model
        owners = (model.embedders, model.heads, model.values)
        owners += (model.decisions, model.header_logits, model.header_embeddings)
        absent = [name for name in model.modalities if name not in batch.segments]
        parts = [owner[name] for owner in owners for name in absent if name in owner]
        return [parameter for part in parts for parameter in part.parameters()]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turn the gradient of the step's summed nats into that of its mean, over all accumulated batches and ranks."""
        n_symbols = self._window_count
        if self.trainer.world_size > 1:
            n_symbols = self.trainer.strategy.reduce(n_symbols, reduce_op="mean")  # gradients are averaged over ranks
        assert isinstance(n_symbols, Tensor)
        scale = torch.where(n_symbols > 0, 1.0 / n_symbols, 0.0)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        self._window_count = torch.zeros((), device=self.device)

    # ------------------------------------------------------------- scoring

    def _score(self, data: tuple[Batch, Counts]) -> None:
        batch, counts = data
        with torch.autocast(self.device.type, enabled=False):  # bits are always those of float32
            nats = self.model.log_prob(batch)
        for name, segment in batch.segments.items():
            n_bits, n_nats = counts.get(name, (0, 0))
            total = -float((nats.payload[name] * segment.weights[..., None]).double().sum())
            self._add(name, total, n_bits, n_nats)
        _, structure = nats.scored(batch)
        if nats.decisions or nats.headers or nats.control.numel():
            self._add(STRUCTURE, float(structure), *counts.get(STRUCTURE, (0, 0)))

    def _add(self, name: str, nats: float, n_bits: int, n_nats: int) -> None:
        sums = self._sums.setdefault(name, [0.0, 0.0, 0.0])
        for i, value in enumerate((nats, n_bits, n_nats)):
            sums[i] += value

    def _finish(self, split: str) -> None:
        results: dict[str, dict[str, float]] = {}
        for name, sums in self._sums.items():
            if self.trainer.world_size > 1:
                sums = self.trainer.strategy.reduce(torch.tensor(sums, device=self.device), reduce_op="sum").tolist()  # type: ignore[union-attr]
            nats, n_bits, n_nats = sums
            if not n_bits:
                continue
            if name == STRUCTURE:
                results[name] = {"bits_per_document": nats / math.log(2) / n_bits}
                continue
            modality = self.model.modalities[name]
            results[name] = {
                f"bits_per_{modality.bits_per}": nats / math.log(2) / n_bits,
                f"nats_per_{modality.nats_per}": nats / n_nats,
            }
        self._sums = {}
        self.metrics[split] = results
        for name, values in results.items():
            for key, value in values.items():
                self.log(f"{split}/{name}/{key}", value, prog_bar=key.startswith("bits") and name != STRUCTURE)

    def validation_step(self, data: tuple[Batch, Counts], index: int) -> None:
        self._score(data)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def test_step(self, data: tuple[Batch, Counts], index: int) -> None:
        self._score(data)

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    # ---------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["n_seen"] = self.n_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.n_seen = checkpoint.get("n_seen", 0)
