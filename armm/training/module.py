"""One LightningModule for every modality: the loss is nats per symbol, the metrics are bits in natural units."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from armm import bundle
from armm.backbones import BackboneConfig, Transformer
from armm.errors import InputError
from armm.modality import Modality
from armm.model import AutoregressiveModel, LogProbs
from armm.sequence import Batch
from armm.training.corruption import Corruption, corrupted
from armm.training.data import DataModule
from armm.training.ema import EMA
from armm.training.guard import Guard, Step, StepGuard
from armm.training.layout import local, squares
from armm.training.loading import STRUCTURE, Counts
from armm.training.optim import Optimization, build
from armm.training.parallel import Sharded
from armm.training.position import settle
from armm.training.ranks import data_rank
from armm.training.schedule import progress_of
from armm.training.sharding import blocks_of
from armm.training.validation import Scores


class GenerativeModule(L.LightningModule):
    """Trains any combination of modalities, heads and backbone.

    Args:
        modalities: by name. A modality that learns a vocabulary learns it from the training data.
        backbone: which backbone.
        layout: the modalities of every document, in order; none for free documents.
        context: at most so many units in a document; no limit by default.
        optimization: rates, decay and schedule.
        weights: of each modality's symbols in the loss; 1 by default.
        corruption: by modality, what is done in training to the symbols that are read as the past; none by default.
        guard: which steps are skipped because they would do harm, and when the run gives up.
        compile: compile the training step's forward pass with torch.compile; minutes on a CPU.
        activation_checkpointing: keep only the input of each of the backbone's blocks for the gradient, and compute the
            rest anew: a third more arithmetic, a fraction of the memory.
    """

    def __init__(
        self,
        modalities: dict[str, Modality],
        backbone: BackboneConfig = Transformer(),  # noqa: B008 - frozen
        layout: list[str] | None = None,
        context: int | None = None,
        optimization: Optimization = Optimization(),  # noqa: B008 - frozen
        weights: dict[str, float] | None = None,
        guard: Guard = Guard(),  # noqa: B008 - frozen
        compile: bool = False,
        corruption: dict[str, list[Corruption]] | None = None,
        activation_checkpointing: bool = False,
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
        self.corruption = corruption or {}
        for name in self.corruption:
            if name not in modalities:
                raise InputError(f"model.corruption names {name!r}; the modalities are {', '.join(modalities)}")
        if not any(self.weights.get(name, 1.0) for name in modalities):
            raise InputError("model.weights are all 0, so nothing is left to learn; give a modality a weight above 0")
        if STRUCTURE in modalities:
            raise InputError(f"{STRUCTURE!r} cannot name a modality: the bits of control symbols are reported under it")
        self.net: AutoregressiveModel | None = None
        self.ema = EMA(optimization.ema) if optimization.ema else None
        self.compile_step, self.activation_checkpointing = compile, activation_checkpointing
        self._compiled: Callable[..., LogProbs] | None = None
        self.metrics: dict[str, dict[str, dict[str, float]]] = {"val": {}, "test": {}}
        self.diagnostics: dict[str, dict[str, Any]] = {}
        """What the latest validation says beside bits (armm/training/diagnostics.py)."""
        self.validation_bits = math.inf
        """All bits of the latest validation, structure included: what the best checkpoint has least of."""
        self.guard, self.step_guard = guard, StepGuard(guard, select=False)
        self.requests = [0.0, 0.0, 0.0]
        """What this rank asks all ranks for with its next step: to save, to stop, to have SLURM start the job again."""
        self.granted = (0.0, 0.0, 0.0)
        """How many ranks asked for each with the latest step that is known of."""
        self.is_between_steps = True
        """Whether nothing of a step that is not finished has changed any weights."""
        self._seen = self._seen_before = torch.zeros((), dtype=torch.int64)
        self._window = torch.zeros(2)  # symbols and nats of the batches accumulated so far
        self._noise_seed: int | None = None
        self._optimised_with: str | None = None  # what a checkpoint was trained with
        self._settings: list[dict[str, Any]] = []  # of the optimiser's groups, as configured
        self._learning: list[torch.nn.Parameter] = []  # those with a gradient in this step
        self.skipped_steps: list[dict[str, Any]] = []
        """The latest steps that were skipped, and everything they would have learned from; on rank 0."""
        self._scores = Scores({})

    @property
    def model(self) -> AutoregressiveModel:
        """The model; there once the data has been seen, since a vocabulary may come from it."""
        assert self.net is not None, "the model is built when fit, validate or test begins"
        return self.net

    @property
    def n_seen(self) -> int:
        """Symbols that this rank has trained on."""
        return int(self._seen)

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
            if self.activation_checkpointing and not blocks_of(net):
                raise InputError("model.activation_checkpointing is for a transformer's blocks; set it to false")
            for block in blocks_of(net):
                block.recompute = self.activation_checkpointing
            self.net = net
        elif data.grammar is None:
            data.fit_modalities(self.model.modalities)
            data.attach(self.model.grammar)

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DataModule), "train with armm.training.DataModule"
        self.prepare(data)

    @property
    def sharded(self) -> Sharded | None:
        """What has dealt the model out over several processes, if anything has."""
        strategy = self._trainer.strategy if self._trainer else None
        return strategy if isinstance(strategy, Sharded) else None

    def configure_model(self) -> None:
        if self.sharded:
            self.sharded.shard(self.model)

    def configure_callbacks(self) -> list[L.Callback]:
        return [self.ema] if self.ema else []

    def configure_optimizers(self) -> Any:
        # on a CPU as the step's own: what multiplies bfloat16 at half the speed is in use too
        half = self.device.type != "cpu" or str(self.trainer.precision).startswith("bf16")
        optimizer = build(self.model, self.optimization, torch.bfloat16 if half else torch.float32)
        progress = progress_of(self.trainer)
        schedule = LambdaLR(optimizer, lambda step: self.optimization.factor(*progress(step)))
        self._settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        if self._noise_seed is None:  # with a checkpoint came the one that the run began with
            self._noise_seed = self.trainer.strategy.broadcast(torch.initial_seed())
        skipping, statistics = self.device.type != "cpu", self.step_guard.state_dict()
        self.step_guard = StepGuard(self.guard, select=skipping)
        self.step_guard.load_state_dict(statistics)

    def on_train_start(self) -> None:
        """Rates that are given anew to a run that goes on, instead of those that its checkpoint holds."""
        if self._optimised_with in (None, repr(self.optimization)):
            return
        (optimizer,), (schedule,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        shares = [group["lr"] / group["initial_lr"] for group in optimizer.param_groups if group["initial_lr"]]
        for group, given in zip(optimizer.param_groups, self._settings, strict=True):
            group.update(given)
            group["lr"] = given["initial_lr"] * shares[0]
        schedule.scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    # ------------------------------------------------------------ training

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make dropout, the only noise in a step, a function of (seed, batch, rank): a run goes on as if never
        interrupted, on any number of processes, and there is no generator state to keep."""
        assert self._noise_seed is not None
        key = [self._noise_seed & (2**64 - 1), self.trainer.fit_loop.total_batch_idx, data_rank(self.trainer).rank]
        # what loggers take for the step; after a restart the Trainer's is one more if a validation was due
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` takes 0.1 ms to look at all kinds of devices
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def loss_sum(self, batch: Batch, nats: LogProbs) -> tuple[Tensor, Tensor]:
        """Weighted nats of everything that is scored, and the weighted number of symbols."""
        total = -nats.control.sum()
        n_symbols = torch.full((), float(nats.control.numel()), device=total.device)
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
        own = torch.stack([n_symbols.detach(), total.detach()]).float()
        self._window = self._window.to(total.device) + own
        n_seen = sum((segment.known.sum() for segment in batch.segments.values()), torch.zeros_like(self._seen))
        self._seen = self._seen.to(total.device) + n_seen
        mean = total.detach() / n_symbols.clamp(min=1e-9)  # a batch may hold conditions only
        step, every = self.trainer.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step % 10 == 0 or (step + 1) % every == 0:
            self.log("train/nats", mean, prog_bar=True, batch_size=batch.n_rows)  # 1 ms, where small steps take 30
        # the sum, here; `on_before_optimizer_step` divides by the count of the whole step. The factor undoes the
        # Trainer's division by the number of accumulated batches. Embedders of absent modalities join at weight 0.
        if self.trainer.world_size > 1 or batch.unscored:
            total = total + 0.0 * sum(parameter.sum() for parameter in self.idle_parameters(batch))
        return (total + self.penalty(batch, nats)) * self.trainer.accumulate_grad_batches

    def log_prob(self, batch: Batch) -> LogProbs:
        """The model's, for training: compiled if asked for, with normalisers if they are penalised."""
        if self.compile_step and self._compiled is None:
            if self.sharded:  # between blocks their weights come and go
                for block in blocks_of(self.model):
                    block.whole = torch.compile(block.whole)  # type: ignore[method-assign]
                self._compiled = self.model.log_prob
            else:
                self._compiled = torch.compile(self.model.log_prob)
        read = corrupted(self.corruption, batch, self.model) if self.corruption else None
        log_prob = self._compiled or self.model.log_prob
        return log_prob(batch, only_scored=True, normalisers=self.optimization.z_loss > 0, read=read)

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
        absent = [name for name in model.modalities if name not in batch.segments or name in batch.unscored]
        parts = [owner[name] for owner in owners for name in absent if name in owner]
        return [parameter for part in parts for parameter in part.parameters()]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Turn the gradient of summed nats into that of their mean over all batches and ranks, and judge the step."""
        self.is_between_steps = False
        asked = torch.tensor(self.requests).to(self._window) if any(self.requests) else self._window.new_zeros(3)
        self._learning = [parameter for parameter in self.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in self._learning if parameter.grad is not None]
        n_ranks = self.trainer.world_size
        totals = torch.cat([self._window, asked])  # symbols, nats, requests
        if self.sharded:
            self.sharded.average([gradient for gradient in gradients if not isinstance(gradient, DTensor)])
            totals = torch.cat([totals, squares(gradients, n_ranks)[None].to(totals)])
        if n_ranks > 1:  # not `strategy.reduce`, which has all ranks wait for each other
            torch.distributed.all_reduce(totals)
        n_symbols, nats, requests = totals[0], totals[1], totals[2:5]
        # gradients are averaged over ranks, so the count is too
        scale = torch.where(n_symbols > 0, n_ranks / n_symbols, 0.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], scale)  # type: ignore[attr-defined]
        self._norm = totals[5].sqrt() * scale if self.sharded else get_total_norm(gradients)
        self._window = torch.zeros_like(self._window)
        self.requests = [0.0, 0.0, 0.0]
        loss = torch.where(n_symbols > 0, nats / n_symbols, 0.0)  # a batch may hold conditions only
        self.step_guard.judge(loss, self._norm, requests)
        self.step_guard.before_step(self._learning, optimizer)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        gradients = [local(parameter.grad) for parameter in self._learning if parameter.grad is not None]
        if not gradient_clip_val or not gradients:
            return
        if gradient_clip_algorithm in (None, "norm"):  # whose norm is known already
            factor = torch.clamp(float(gradient_clip_val) / (self._norm + 1e-6), max=1.0)  # as torch has it
            torch._foreach_mul_(gradients, factor)  # type: ignore[attr-defined]
        else:
            torch._foreach_clamp_min_(gradients, -float(gradient_clip_val))  # type: ignore[attr-defined]
            torch._foreach_clamp_max_(gradients, float(gradient_clip_val))  # type: ignore[attr-defined]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """A step, undone where it was bad."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        n_batches = self.trainer.accumulate_grad_batches
        batches = range(batch_idx // n_batches * n_batches, batch_idx + 1)
        steps = self.step_guard.after_step(self.trainer.global_step, epoch, batches, optimizer.optimizer)
        self._take_note(steps)

    def end_step(self) -> None:
        """All of a step is done, the schedule's part too."""
        self.is_between_steps, self._seen_before = True, self._seen

    def forget_unfinished_step(self) -> None:
        """Be as at the end of the step before."""
        self._seen, self._window = self._seen_before, torch.zeros_like(self._window)

    def _take_note(self, steps: list[Step]) -> None:
        for step in steps:
            self.granted = step.requests[0], step.requests[1], step.requests[2]
            if not step.good:
                self.on_skipped_step(step)

    @rank_zero_only
    def on_skipped_step(self, step: Step) -> None:
        """Say which step was skipped and what it would have learned from."""
        what = f"the loss was {step.loss:.4g} (running mean {step.mean:.4g}), the gradient's norm {step.norm:.4g}"
        where = f"epoch {step.epoch}, batch {step.batches[0]}"
        if len(step.batches) > 1:
            where += f" to {step.batches[-1]}"
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        items = data.items_of(step.epoch, step.batches) if isinstance(data, DataModule) else []
        names = ", ".join(item.get("file", f"item {item['item']}") for item in items[:8])
        names += f" and {len(items) - 8} more, named in metrics.json" if len(items) > 8 else ""
        print(f"\nstep {step.number} was skipped: {what}; {where}: {names}", file=sys.stderr)
        about = {"step": step.number, "epoch": step.epoch, "batches": list(step.batches), "loss": str(step.loss)}
        self.skipped_steps = [*self.skipped_steps, {**about, "norm": str(step.norm), "items": items}][-100:]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.step_guard.gives_up(self.trainer.global_step):
            n, guard = len(self.step_guard.skipped), self.guard
            raise InputError(
                f"{n} of the latest {guard.window} steps were skipped, the last at step {self.step_guard.skipped[-1]}: "
                "training does not get on; lower model.optimization.lr or muon_lr, mend the data named above, or raise "
                "model.guard.spike or limit"
            )

    # ------------------------------------------------------------- scoring

    def _score(self, data: tuple[Batch, Counts]) -> None:
        batch, counts = data
        self._scores.add(batch, self.score(batch), counts)

    def scoring_precision(self) -> torch.autocast:
        """Float32, but where processes send each other weights in less."""
        half = self.sharded is not None and self.sharded.is_half
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def score(self, batch: Batch) -> LogProbs:
        """Nats, as they are reported."""
        with self.scoring_precision():
            return self.model.log_prob(batch, only_scored=True)

    def _finish(self, split: str) -> None:
        self._scores.over_all(self.trainer, self.device)
        self.metrics[split] = results = self._scores.results()
        if split == "val":
            self.validation_bits = self._scores.bits()
        for name, values in results.items():
            for key, value in values.items():
                self.log(f"{split}/{name}/{key}", value, prog_bar=key.startswith("bits") and name != STRUCTURE)

    def on_validation_epoch_start(self) -> None:
        self._scores = Scores(self.model.modalities)

    def on_test_epoch_start(self) -> None:
        self._scores = Scores(self.model.modalities)

    def validation_step(self, data: tuple[Batch, Counts], index: int) -> None:
        self._score(data)

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def test_step(self, data: tuple[Batch, Counts], index: int) -> None:
        self._score(data)

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    # ---------------------------------------------------------- checkpoints

    def on_train_end(self) -> None:
        self._take_note(self.step_guard.known())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        settle(checkpoint["loops"]["fit_loop"], self.trainer.num_training_batches, checkpoint["global_step"])
        self._take_note(self.step_guard.known())
        checkpoint["armm"] = {
            "n_seen": self.n_seen,
            "noise_seed": self._noise_seed,
            "guard": self.step_guard.state_dict(),
            "metrics": self.metrics,
            "diagnostics": self.diagnostics,
            "skipped_steps": self.skipped_steps,
            "optimization": repr(self.optimization),
            "model": bundle.describe(self.model),  # so that a bundle can be made of it
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = checkpoint["armm"]
        self._seen = self._seen_before = torch.tensor(own["n_seen"], dtype=torch.int64)
        self._noise_seed, self._optimised_with = own["noise_seed"], own["optimization"]
        self.step_guard.load_state_dict(own["guard"])
        self.metrics, self.skipped_steps = own["metrics"], own["skipped_steps"]
        self.diagnostics = own.get("diagnostics", {})
