"""z-loss is in the gradient and in nothing that is reported; clipping sees the mean gradient."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from tiny_modalities import Clip, Letters, hash_parameters, hash_symbols
from tiny_training import QUIET, Given, module_of
from torch import Tensor

from armm.batching import collate
from armm.modality import Modality
from armm.training import DataModule, GenerativeModule, Optimization
from armm.training.optim import MuonAdamW

pytestmark = pytest.mark.filterwarnings("ignore")

LETTERS = [{"letters": hash_symbols(n, 6, seed=n)} for n in (3, 9, 20, 31)]
STILL = {"lr": 1e-12, "muon_lr": 0.0}


def gradients(
    items: list[dict[str, Any]], *modalities: Modality, options: dict[str, Any], trainer: dict[str, Any] | None = None
) -> tuple[dict[str, Tensor], float, GenerativeModule]:
    """What the optimiser gets at the first step, and the nats that are logged."""
    module = module_of(*modalities, layout=[m.name for m in modalities], optimization=Optimization(**STILL, **options))
    data = DataModule(Given(items), batch_size=len(items))
    module.prepare(data)
    hash_parameters(module.model)
    found: dict[str, Tensor] = {}

    def note(optimizer: Any, *arguments: Any) -> None:
        found.update({n: p.grad.clone() for n, p in module.model.named_parameters() if p.grad is not None})

    with pytest.MonkeyPatch.context() as patch:
        step = MuonAdamW.step

        def noting(self: MuonAdamW, closure: Any = None) -> Any:
            def closed() -> Any:
                loss = closure()
                note(self)
                return loss

            return step(self, closed)

        patch.setattr(MuonAdamW, "step", noting)
        made = L.Trainer(**{**QUIET, "limit_val_batches": 0, **(trainer or {})}, max_steps=1)
        made.fit(module, datamodule=data)
    return found, float(made.callback_metrics["train/nats"]), module


def mean_gradient(module: GenerativeModule, items: list[dict[str, Any]], weight: float) -> dict[str, Tensor]:
    """Of nats and weight times squared normaliser, by the heads' logits."""
    model = module.model
    batch = collate([[model.modalities[n].encode(raw) for n, raw in item.items()] for item in items], model.grammar)
    (name,) = batch.segments
    segment = batch.segments[name]
    payload, _ = model.log_prob(batch).scored(batch)
    context = model.contexts(batch)[:, : segment.symbols.shape[1]]
    logits = model.head(name).logits(context, segment.symbols, segment.known, segment.header)
    squares = (logits.logsumexp(-1).square() * segment.scored()).sum()
    module.zero_grad()
    ((payload + weight * squares) / segment.scored().sum()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


CASES = {
    "letters": (Letters(ended=False), LETTERS),
    "clip": (Clip(ended=False), [{"clip": hash_symbols(9, 5, seed=k)} for k in range(3)]),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_square_of_the_normaliser(name: str) -> None:
    """Its gradient is added to that of the mean nats; the nats are what they were."""
    modality, items = CASES[name]
    plain, nats, module = gradients(items, modality, options={})
    found, same, _ = gradients(items, modality, options={"z_loss": 0.01})
    assert same == pytest.approx(nats, rel=1e-6)
    expected = mean_gradient(module, items, 0.01)
    apart = mean_gradient(module, items, 0.0)
    for own, gradient in expected.items():
        torch.testing.assert_close(found[own], gradient, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(plain[own], apart[own], rtol=1e-3, atol=1e-5)
    assert any((expected[own] - apart[own]).norm() > 1e-3 for own in expected)


def test_structure_is_not_penalised_but_learned() -> None:
    """A modality of coded length: end decisions have nats and no normaliser."""
    items = [{"clip": hash_symbols(7, 5, seed=k)} for k in range(3)]
    found, _, _ = gradients(items, Clip(), options={"z_loss": 0.1})
    plain, _, _ = gradients(items, Clip(), options={})
    assert torch.equal(found["decisions.clip.bias"], plain["decisions.clip.bias"])
    assert found["decisions.clip.bias"].any()


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_clipping_acts_on_the_mean_gradient(clip: float) -> None:
    """After the division by the number of symbols: clipped before it, a gradient would end up 63 times smaller."""
    found, _, module = gradients(LETTERS, Letters(ended=False), options={}, trainer={"gradient_clip_val": clip})
    expected = mean_gradient(module, LETTERS, 0.0)
    norm = torch.stack([own.norm() for own in expected.values()]).norm()
    scale = min(1.0, clip / float(norm))
    assert float(norm) > 0.01
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient * scale, rtol=1e-3, atol=1e-5 * scale)
