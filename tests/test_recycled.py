"""Recycling: the same blocks again, gradients through the last passes, and nothing from a later position."""

from __future__ import annotations

import pytest
import torch
from tiny_modalities import hash_parameters, hash_symbols
from torch import Tensor

from armm.backbones import Recycle, Transformer
from armm.backbones.recycled import RecycledBackbone
from armm.errors import InputError


def build(passes: int, gradient_passes: int) -> RecycledBackbone:
    backbone = Transformer(width=8, n_layers=2, n_heads=2, recycle=Recycle(passes, gradient_passes)).build()
    assert isinstance(backbone, RecycledBackbone)
    hash_parameters(backbone)
    return backbone


def units(n: int) -> Tensor:
    return torch.tensor(hash_symbols(n * 8, 2001)).float().view(1, n, 8) / 500 - 2


def test_one_pass_is_the_backbone_itself() -> None:
    backbone, x = build(1, 1), units(5)
    assert torch.equal(backbone(x, None), backbone.core(x, None))


def test_every_pass_is_given_the_input_anew() -> None:
    backbone, x = build(3, 3), units(5)
    once = backbone.core(x, None)
    twice = backbone.core(x + backbone.scale * once, None)
    assert torch.equal(backbone(x, None), backbone.core(x + backbone.scale * twice, None))


def test_more_passes_need_no_more_parameters() -> None:
    assert [p.shape for p in build(2, 1).parameters()] == [p.shape for p in build(9, 1).parameters()]


@pytest.mark.parametrize("gradient_passes", [1, 2])
def test_gradients_flow_through_the_last_passes_only(gradient_passes: int) -> None:
    backbone, x = build(3, gradient_passes), units(5)
    backbone(x, None).square().sum().backward()
    found = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    backbone.zero_grad()
    given = out = x
    for number in range(3):
        if number == 3 - gradient_passes:
            given = x + backbone.scale * out.detach() if number else x
        out = backbone.core(given, None)
        given = x + backbone.scale * out
    out.square().sum().backward()
    for name, parameter in backbone.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)
    assert any(gradient is not None and gradient.any() for gradient in found.values())


def test_all_passes_would_have_another_gradient() -> None:
    """The test above can fail: cutting a pass off changes something."""
    gradients = []
    for gradient_passes in (2, 3):
        backbone = build(3, gradient_passes)
        backbone(units(5), None).square().sum().backward()
        gradients.append(backbone.scale.grad)
    assert not torch.allclose(*gradients)  # type: ignore[arg-type]


def test_forward_does_not_depend_on_where_gradients_flow() -> None:
    torch.testing.assert_close(build(3, 1)(units(4), None), build(3, 3)(units(4), None))


@pytest.mark.parametrize(("passes", "gradient_passes"), [(0, 1), (2, 3), (2, 0)])
def test_passes_that_cannot_be_are_refused(passes: int, gradient_passes: int) -> None:
    with pytest.raises(InputError, match="recycle: gradient_passes"):
        Recycle(passes, gradient_passes)
