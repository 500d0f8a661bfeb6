"""A transformer's steps in compiled code: the numbers of the plain ones, and of no other row."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from test_transformer import VARIANTS, build, close, units, values_for
from tiny_modalities import Letters, hash_parameters

from armm import prepacking
from armm.backbones import NoBackbone, Transformer
from armm.backbones.backbone import BackboneState
from armm.generation import NGram, Temperature, generate
from armm.generation.exact import self_test
from armm.kernels import Weights
from armm.model import AutoregressiveModel
from armm.prepacking import prepack
from armm.quantization import quantise

pytest.importorskip("numba", reason="numba is not installed: pip install armm[fast]")
WIDE = Transformer(width=64, n_layers=2, n_heads=2, norm_gain=True, mlp="swiglu", mlp_width=96, qk_norm=False)


def model_of(backbone: Any = WIDE) -> AutoregressiveModel:
    model = AutoregressiveModel({"letters": Letters(vocab=40, ended=False)}, backbone, ["letters"])
    hash_parameters(model)
    return model.eval()


def compiled(state: BackboneState) -> Any:
    state.compile()
    return state


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_do_not_depend_on_each_other(variant: str) -> None:
    """Bit for bit, alone or at another place of a larger batch, one step at a time or several in one call."""
    config, n = VARIANTS[variant], 9
    backbone = build(config)
    x, values = units(n, config.width, 7), values_for(config, n, 7)
    with torch.inference_mode():
        alone, together, at_once = (compiled(backbone.state(rows, min_rows=16)) for rows in (1, 7, 1))
        for t in range(n):
            own_values = None if values is None else values[:, t : t + 1]
            every = together.extend(torch.arange(7), x[:, t : t + 1], own_values, [1] * 7)
            one = alone.extend(
                torch.tensor([0]), x[5:6, t : t + 1], None if own_values is None else own_values[5:6], [1]
            )
            assert torch.equal(every[5], one[0])
        whole = at_once.extend(torch.tensor([0]), x[5:6], None if values is None else values[5:6], [n], stepwise=True)
        assert torch.equal(whole[0, -1], every[5, 0])


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_packed_products_get_what_they_take(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 rows, digits of integers, or float32: the same as the plain steps, but for roundings of activations."""
    monkeypatch.setattr(prepacking, "SMALLEST", 1)
    model = model_of()
    prepack(model if weights == "fp32" else quantise(model, weights))  # type: ignore[arg-type]
    with torch.inference_mode():
        plain, fast = model.state(3), model.state(3, compiled=True)
        for t in range(12):
            a, b = plain.extend([[t], [2 * t], [3]]), fast.extend([[t], [2 * t], [3]])
            close(b, a, 1e-4 if weights == "fp32" else 0.1)
    assert fast._backbone._compiled_steps is not None, "compiled steps were taken"  # type: ignore[attr-defined]


@pytest.mark.parametrize("weights", [None, "int8", "int4"])
@pytest.mark.parametrize("proposer", [None, NGram()], ids=["plain", "guessed"])
def test_compiled_samples_are_the_same_in_any_batch(weights: Weights | None, proposer: NGram | None) -> None:
    model = model_of()
    if weights:
        quantise(model, weights)
    assert self_test(model, compiled=True)
    together = {s.index: s for s in generate(model, n=6, seed=4, max_symbols=25, batch_size=5, proposer=proposer)}
    for sample in generate(model, n=6, seed=4, max_symbols=25, batch_size=1):
        assert sample.exact and together[sample.index].symbols == sample.symbols
        assert together[sample.index].log_probs == sample.log_probs


def test_compiled_or_not_is_asked_for() -> None:
    model = model_of()
    ways = [next(generate(model, seed=1, max_symbols=40, fast=fast)) for fast in (False, True, None)]
    assert ways[0].symbols == ways[1].symbols == ways[2].symbols, "they differ in last bits only"
    assert ways[1].log_probs == ways[2].log_probs != ways[0].log_probs


def test_what_has_no_compiled_steps_takes_plain_ones() -> None:
    half, without = deepcopy(model_of()).double(), model_of(NoBackbone(width=8))
    for model in (half, without):
        state = model.state(2, compiled=True)
        assert torch.equal(state.extend([[1, 2], [3]]), model.state(2).extend([[1, 2], [3]]))


def test_greedy_samples_agree_with_plain_steps() -> None:
    model = model_of()
    a, b = (next(generate(model, max_symbols=30, filters=[Temperature(0)], fast=fast)) for fast in (False, None))
    assert a.symbols == b.symbols
