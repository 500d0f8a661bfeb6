"""Pieces of a block with their gradients written out: the same as the plain code beside which they are called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from armm.backbones import Transformer, fused

CONFIGS = {
    "small-model": Transformer(width=32, n_layers=2, n_heads=2, value_embeddings=True, residual_scalars=True),
    "no qk-norm": Transformer(width=32, n_layers=2, n_heads=2, qk_norm=False),
    "gpt2": Transformer(
        width=32, n_layers=2, n_heads=2, position="learned", norm="layer", norm_gain=True, mlp="gelu", bias=True,
        qk_norm=False,
    ),
    "qk-norm, learned positions": Transformer(width=32, n_layers=1, n_heads=4, position="learned"),
    "grouped, windowed": Transformer(width=32, n_layers=2, n_heads=4, n_kv_heads=2, window=8),
    "soft-cap": Transformer(width=32, n_layers=1, n_heads=2, attention_softcap=5.0),
}  # fmt: skip


def output_and_gradients(config: Transformer, autocast: bool) -> list[Tensor]:
    """Of a backbone with matrices that matter, in training."""
    torch.manual_seed(0)
    backbone = config.build().train()
    for parameter in backbone.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(3, 20, config.width, requires_grad=True)
    values = torch.randn(3, 20, config.value_width, requires_grad=True) if config.value_width else None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = backbone(x, values)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out.float() * weight).sum().backward()
    leaves = [x, *([values] if values is not None else []), *backbone.parameters()]
    return [out.detach().float(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_the_plain_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 to rounding; in bfloat16 as near as two orders of its roundings are."""
    found = {autocast: output_and_gradients(CONFIGS[name], autocast) for autocast in (False, True)}
    monkeypatch.setattr(fused, "applies", lambda x: False)
    expected = {autocast: output_and_gradients(CONFIGS[name], autocast) for autocast in (False, True)}
    for autocast, bound in ((False, 1e-5), (True, 0.06)):
        assert len(found[autocast]) == len(expected[autocast])
        for one, other in zip(found[autocast], expected[autocast], strict=True):
            assert float((one - other).norm()) <= bound * float(other.norm()) + 1e-7


def test_they_are_used_in_training_alone() -> None:
    """Scores and samples come from the plain code, bit for bit; or this file tests nothing."""
    x = torch.randn(2, 4, 8)
    assert not fused.applies(x) and fused.applies(x.requires_grad_())
    with torch.no_grad():
        assert not fused.applies(x)


def test_bfloat16_attention_is_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradient reaches a key after the query: zero, not small."""
    q, k, v = (torch.randn(1, 2, 6, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    fused.attend_causally(q, k, v)[:, :, 2].sum().backward()
    for own in (k, v):
        assert own.grad is not None and not own.grad[:, :, 3:].any() and own.grad[:, :, :3].any()


def test_squared_relu_and_norm_pass_gradcheck() -> None:
    """Against finite differences, in double precision."""
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda t: fused.SquaredReLU.apply(t * 1.0), (x,))
    torch.autograd.gradcheck(lambda t: fused.RMSNorm.apply(t, 1e-5, torch.float64), (x,), atol=1e-4)
