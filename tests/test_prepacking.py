"""Packed float32 matrices: the same numbers, the same rows in any company, and a model that samples the same."""

from __future__ import annotations

import pytest
import torch
from tiny_modalities import Letters, hash_parameters

from armm import prepacking
from armm.backbones import Transformer
from armm.exactness import MIN_ROWS, rows_needed
from armm.generation import generate
from armm.generation.exact import self_test
from armm.heads import CategoricalHead
from armm.model import AutoregressiveModel
from armm.prepacking import PrepackedLinear, prepack


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack everything, however small."""
    monkeypatch.setattr(prepacking, "SMALLEST", 1)


def build() -> AutoregressiveModel:
    model = AutoregressiveModel(
        {"letters": Letters(vocab=40, ended=False)}, Transformer(width=32, n_layers=2, n_heads=2), ["letters"]
    )
    hash_parameters(model)
    return model.eval()


@pytest.mark.parametrize(("n", "k"), [(40, 24), (7, 13), (256, 768), (1, 5)])
def test_a_packed_product_is_the_product(n: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=generator) for shape in ((n, k), (n,), (2, 3, k)))
    layer = PrepackedLinear(weight, bias)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_do_not_depend_on_each_other(threads: int) -> None:
    """From two rows on; what makes an exact state cheap. The self-test looks before anything is promised."""
    generator = torch.Generator().manual_seed(1)
    layer = PrepackedLinear(torch.randn(96, 160, generator=generator), None)
    x = torch.randn(70, 160, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = layer(x)
        for m in (2, 3, 5, 8, 16, 17, 33, 64):
            assert torch.equal(layer(x[3 : 3 + m]), whole[3 : 3 + m])
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("small")
def test_a_packed_model_says_and_samples_the_same() -> None:
    """The same symbols as before: its logits differ in their last bits, if at all; exact with two rows a product."""
    model = build()
    expected = [s.symbols for s in generate(model, n=4, seed=2, max_symbols=30)]
    nats = model.stream_log_prob([model.modalities["letters"].encode([1, 2, 3])])
    assert rows_needed(model.backbone) == MIN_ROWS
    prepack(model)
    assert rows_needed(model.backbone) == rows_needed(model.heads["letters"]) == 2
    assert self_test(model)
    found = list(generate(model, n=4, seed=2, max_symbols=30))
    assert [s.symbols for s in found] == expected and found[0].exact
    with torch.no_grad():
        again = model.stream_log_prob([model.modalities["letters"].encode([1, 2, 3])])
    torch.testing.assert_close(again, nats.detach(), rtol=1e-4, atol=1e-4)


def test_small_matrices_stay_as_they_are() -> None:
    model = prepack(build())
    assert not any(isinstance(module, PrepackedLinear) for module in model.modules())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_a_product_that_is_missing_or_wrong_is_not_used(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: PrepackedLinear, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such operator")

    original = PrepackedLinear._product

    def wrong(self: PrepackedLinear, x: torch.Tensor) -> torch.Tensor:
        y = original(self, x)
        y[1, 3] *= 1.001
        return y

    monkeypatch.setattr(PrepackedLinear, "_product", refuse if fault == "missing" else wrong)
    model = prepack(build())
    assert not any(isinstance(module, PrepackedLinear) for module in model.modules())
    head = model.heads["letters"]
    assert isinstance(head, CategoricalHead) and head.output is None
