"""The average of the weights: what it is, who uses it, and that it goes on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_modalities import Letters, hash_parameters, hash_symbols
from tiny_training import QUIET, Given, module_of
from torch import Tensor

from armm import bundle
from armm.errors import InputError
from armm.training import DataModule, GenerativeModule, Optimization, Recorder
from armm.training.ema import EMA

pytestmark = pytest.mark.filterwarnings("ignore")

ITEMS = [{"letters": hash_symbols(9, 6)}] * 8  # alike, so that their order does not matter here
DECAY = 0.5


class Weights(L.Callback):
    """Keeps the weights after every step."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
        self.seen[trainer.global_step] = weights(pl_module)


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def fit(
    n_steps: int, *callbacks: L.Callback, ema: float | None = DECAY, load: Path | None = None, **options: Any
) -> tuple[GenerativeModule, L.Trainer, DataModule]:
    optimization = Optimization(lr=0.05, warmup=0.0, decay=0.0, ema=ema)
    module, data = (
        module_of(Letters(), layout=["letters"], optimization=optimization),
        DataModule(Given(ITEMS), batch_size=2),
    )
    module.prepare(data)
    hash_parameters(module.model)
    trainer = L.Trainer(**{**QUIET, "limit_val_batches": 0, **options}, max_steps=n_steps, callbacks=list(callbacks))
    trainer.fit(module, datamodule=data, ckpt_path=load, weights_only=False)
    return module, trainer, data


def test_the_average_is_what_it_says() -> None:
    """Of all steps, each weighted by the decay, the first steps by less of it; and training itself is not changed."""
    kept = Weights()
    module, _, _ = fit(5, kept)
    begun = module_of(Letters(), layout=["letters"])
    begun.prepare(DataModule(Given(ITEMS)))
    hash_parameters(begun.model)
    expected = weights(begun)
    for n in range(1, 6):
        decay = min(DECAY, (1 + n) / (10 + n))
        expected = {name: decay * own + (1 - decay) * kept.seen[n][name] for name, own in expected.items()}
    assert module.ema is not None and module.ema.n_updates == 5
    for name, own in expected.items():
        torch.testing.assert_close(module.ema.average[name], own, rtol=1e-5, atol=1e-6)
    plain = Weights()
    fit(5, plain, ema=None)
    assert same(plain.seen[5], kept.seen[5]) and same(weights(module), kept.seen[5])


def test_it_is_off_by_default() -> None:
    assert module_of(Letters()).ema is None


def test_accumulated_batches_are_one_update() -> None:
    module, _, _ = fit(2, accumulate_grad_batches=2)
    assert module.ema is not None and module.ema.n_updates == 2


def test_evaluation_and_bundle_have_the_average(tmp_path: Path) -> None:
    """Reported bits are those of the model that is kept; training goes on from the weights."""

    class During(L.Callback):
        seen: dict[str, Tensor]

        def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any) -> None:
            self.seen = weights(pl_module)

    during = During()
    options = {"limit_val_batches": 1.0, "check_val_every_n_epoch": None, "val_check_interval": 2}
    module, trainer, data = fit(4, Recorder(tmp_path, "text/letters", 0), during, **options)
    assert module.ema is not None
    assert same(during.seen, module.ema.average) and not same(weights(module), module.ema.average)
    kept = bundle.load(tmp_path)
    average = {f"net.{name}": own for name, own in weights(kept).items()}
    assert same(average, module.ema.average)
    before = weights(module)
    trainer.test(module, datamodule=data, verbose=False)
    assert same(weights(module), before) and not module.ema.lent


def test_resume_is_exact(tmp_path: Path) -> None:
    """2N steps equal N, save, load into new objects, N: weights and average, bitwise; also mid-validation."""
    whole, _, _ = fit(8)
    module, trainer, _ = fit(4)  # an epoch
    assert module.ema is not None and whole.ema is not None
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    module.ema.swap(module)  # as in a validation
    trainer.save_checkpoint(tmp_path / "lent.ckpt")
    for name in ("plain", "lent"):
        resumed, _, _ = fit(8, load=tmp_path / f"{name}.ckpt")
        assert resumed.ema is not None and resumed.ema.n_updates == 8
        assert same(weights(resumed), weights(whole)) and same(resumed.ema.average, whole.ema.average)


def test_lending_gives_back_after_an_error() -> None:
    module, _, _ = fit(2)
    assert module.ema is not None
    before = weights(module)
    with pytest.raises(RuntimeError), module.ema.lending(module):
        assert not same(weights(module), before)
        raise RuntimeError
    assert same(weights(module), before)


def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their average would be that of a part."""
    monkeypatch.setattr("armm.training.ema.DTensor", torch.nn.Parameter)
    with pytest.raises(InputError, match="ema"):
        EMA(0.9).start(torch.nn.Linear(2, 2))
