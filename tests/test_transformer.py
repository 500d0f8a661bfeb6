"""The transformer: GPT-2's and LLaMA's blocks exactly, windows and soft caps by their definitions, cached steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_modalities import Letters, hash_parameters, hash_symbols
from torch import Tensor, nn

from armm.backbones import Transformer, TransformerBackbone
from armm.backbones.transformer import Block
from armm.backbones.transformer_state import CACHE_STEP, TransformerState, attend
from armm.errors import InputError
from armm.model import AutoregressiveModel

needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed: pip install armm[fast]")

SMALL = Transformer(width=16, n_layers=3, n_heads=4)
GPT2 = Transformer(
    width=24,
    n_layers=3,
    n_heads=4,
    position="learned",
    max_positions=64,
    norm="layer",
    norm_gain=True,
    mlp="gelu",
    bias=True,
    qk_norm=False,
)
LLAMA = Transformer(
    width=32, n_layers=3, n_heads=4, n_kv_heads=2, norm_gain=True, mlp="swiglu", mlp_width=56, qk_norm=False
)
VARIANTS = {
    "default": SMALL,
    "gpt-2": GPT2,
    "llama": LLAMA,
    "window": replace(SMALL, window=5),
    "capped": replace(SMALL, attention_softcap=2.0, n_kv_heads=2),
    "capped window": replace(SMALL, attention_softcap=2.0, window=3),
    "values": replace(SMALL, value_embeddings=True, residual_scalars=True, n_kv_heads=1),
}


def build(config: Transformer) -> TransformerBackbone:
    backbone = config.build()
    assert isinstance(backbone, TransformerBackbone)
    hash_parameters(backbone)
    return backbone.eval()


def units(n: int, width: int, rows: int = 1, seed: int = 0) -> Tensor:
    """(rows, n, width) fixed numbers of order 1."""
    return torch.tensor(hash_symbols(rows * n * width, 2001, seed)).float().view(rows, n, width) / 500 - 2


def values_for(config: Transformer, n: int, rows: int = 1, seed: int = 9) -> Tensor | None:
    return units(n, config.value_width, rows, seed) if config.value_width else None


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# -------------------------------------------------------------- other people's


def reference_model(name: str, config: dict[str, Any]) -> nn.Module:
    """A tiny model of Hugging Face's with fixed parameters, biases and gains included."""
    transformers = pytest.importorskip("transformers", reason="the reference needs transformers: pip install armm[dev]")
    options = getattr(transformers, f"{name}Config")(**config, attn_implementation="sdpa", use_cache=False)
    model = getattr(transformers, f"{name}Model")(options)
    hash_parameters(model, seed=1)
    return model.eval()


def copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for own, theirs in pairs:
            assert own.shape == theirs.shape
            own.copy_(theirs)


class RMSNorm(nn.Module):
    """LLaMA's norm in the type of its input; Hugging Face's own computes in float32 always."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()


def in_float64(model: nn.Module) -> nn.Module:
    model = model.double()
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for name, module in modules:
        if type(module).__name__ == "LlamaRMSNorm":
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, RMSNorm(module.weight, module.variance_epsilon))
    return model


def check_against(config: Transformer, theirs: nn.Module, pairs: Callable[[Any], list[tuple[Tensor, Tensor]]]) -> None:
    """Equal outputs, at once and step by step: of the model as it is, and in float64 to the last digits."""
    backbone = build(config)
    for parameter in backbone.parameters():
        nn.init.constant_(parameter, torch.nan)  # each of ours must be set from theirs
    copy(pairs(backbone))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        if dtype == torch.float64:
            backbone, theirs = backbone.double(), in_float64(theirs)
        x = units(20, config.width, rows=2).to(dtype)
        with torch.no_grad():
            expected = theirs(inputs_embeds=x).last_hidden_state
            assert expected.dtype == dtype
            assert expected.std() > 0.1
            close(backbone(x, None), expected, tolerance)
            state = backbone.state(2)
            rows = torch.arange(2)
            pieces = [state.extend(rows, x[:, a:b], None, [b - a] * 2) for a, b in ((0, 7), (7, 8), (8, 20))]
        close(torch.cat(pieces, dim=1), expected, tolerance)


def test_gpt2_block_is_exact() -> None:
    """Checkpoints of GPT-2 must be loadable: the same function, not a similar one."""
    theirs: Any = reference_model(
        "GPT2",
        {
            "n_embd": 24,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 64,
            "vocab_size": 8,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
        },
    )

    def pairs(backbone: TransformerBackbone) -> list[tuple[Tensor, Tensor]]:
        own: Any = backbone
        found = [
            (own.positions, theirs.wpe.weight),
            (own.norm.weight, theirs.ln_f.weight),
            (own.norm.bias, theirs.ln_f.bias),
        ]
        for ours, block in zip(own.blocks, theirs.h, strict=True):
            layers = [
                (ours.attention.qkv, block.attn.c_attn),
                (ours.attention.out, block.attn.c_proj),
                (ours.mlp.enter, block.mlp.c_fc),
                (ours.mlp.out, block.mlp.c_proj),
            ]
            found += [(a.weight, b.weight.T) for a, b in layers] + [(a.bias, b.bias) for a, b in layers]
            norms = [(ours.attention_norm, block.ln_1), (ours.mlp_norm, block.ln_2)]
            found += [(a.weight, b.weight) for a, b in norms] + [(a.bias, b.bias) for a, b in norms]
        return found

    check_against(GPT2, theirs, pairs)


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_llama_block_is_exact(n_kv_heads: int, theta: float) -> None:
    """Checkpoints of LLaMA, with and without grouped queries, at the rotation bases of versions 1 to 3."""
    theirs: Any = reference_model(
        "Llama",
        {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": n_kv_heads,
            "intermediate_size": 56,
            "rms_norm_eps": 1e-5,
            "vocab_size": 8,
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        },
    )

    def pairs(backbone: TransformerBackbone) -> list[tuple[Tensor, Tensor]]:
        own: Any = backbone
        found = [(own.norm.weight, theirs.norm.weight)]
        for ours, block in zip(own.blocks, theirs.layers, strict=True):
            a, m = block.self_attn, block.mlp
            found += [
                (ours.attention.qkv.weight, torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])),
                (ours.attention.out.weight, a.o_proj.weight),
                (ours.mlp.enter.weight, torch.cat([m.gate_proj.weight, m.up_proj.weight])),
                (ours.mlp.out.weight, m.down_proj.weight),
                (ours.attention_norm.weight, block.input_layernorm.weight),
                (ours.mlp_norm.weight, block.post_attention_layernorm.weight),
            ]
        return found

    check_against(replace(LLAMA, n_kv_heads=n_kv_heads, rope_base=theta), theirs, pairs)


def test_llama_angles_are_bitwise_the_same() -> None:
    """At position 8191 one ulp of a frequency is 0.0005 radians: enough to see in the logits of a checkpoint."""
    transformers = pytest.importorskip("transformers", reason="the reference needs transformers: pip install armm[dev]")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters = {"rope_type": "default", "rope_theta": 500000.0}
    config = transformers.LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=parameters)
    positions = torch.tensor([[0, 1, 77, 8191]])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions)
    angles = build(Transformer(width=256, n_heads=4, n_layers=1, rope_base=500000.0)).angles(positions)
    assert angles is not None
    assert torch.equal(angles.cos(), cos[..., :32])
    assert torch.equal(angles.sin(), sin[..., :32])


# ------------------------------------------------------------------- attention


def qkv(n: int = 7, heads: int = 4, groups: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    whole = units(n, 6 * (heads + 2 * groups), rows=2).double().view(2, n, heads + 2 * groups, 6).transpose(1, 2)
    return whole[:, :heads], whole[:, heads : heads + groups], whole[:, heads + groups :]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, softcap: float | None = None) -> Tensor:
    """By the formula, one query at a time. (B, H, N, E), seen: (N, N) bool."""
    group = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q)
    for h in range(q.shape[1]):
        for n in range(q.shape[2]):
            keys, own = k[:, h // group, seen[n]], v[:, h // group, seen[n]]
            scores = (keys * q[:, h, n, None]).sum(-1) / q.shape[-1] ** 0.5
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            out[:, h, n] = (scores.softmax(-1)[..., None] * own).sum(1)
    return out


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_attention_is_its_formula(softcap: float | None, groups: int) -> None:
    q, k, v = qkv(groups=groups)
    seen = torch.ones(7, 7, dtype=torch.bool).tril()
    expected = plain_attention(q, k, v, seen, softcap)
    close(attend(q, k, v, None, True, softcap, 0.0), expected, 1e-12)
    close(attend(q, k, v, seen[None, None], False, softcap, 0.0), expected, 1e-12)
    random = seen & (units(7, 7)[0] > -0.5) | torch.eye(7, dtype=torch.bool)
    close(attend(q, k, v, random[None, None], False, softcap, 0.0), plain_attention(q, k, v, random, softcap), 1e-12)


@pytest.mark.parametrize("groups", [4, 2])
def test_a_huge_soft_cap_is_none(groups: int) -> None:
    """The soft-capped path is written out, the other is torch's: they may differ by the cap only."""
    q, k, v = qkv(groups=groups)
    close(attend(q, k, v, None, True, 1e7, 0.0), attend(q, k, v, None, True, None, 0.0), 1e-10)
    backbone, capped = build(SMALL), build(replace(SMALL, attention_softcap=1e4))
    x = units(9, 16)
    close(capped(x, None), backbone(x, None), 1e-4)
    assert not torch.allclose(build(replace(SMALL, attention_softcap=0.5))(x, None), backbone(x, None), atol=1e-3)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [1, 2, 5, 12, 40])
def test_window_is_a_mask(window: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A position sees itself and the `window - 1` before it, in every layer: as with the slow attention and a mask."""
    config = replace(SMALL, attention_softcap=softcap)
    whole, windowed, x = build(config), build(replace(config, window=window)), units(12, 16)
    i, j = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")

    def masked(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
        return plain_attention(q, k, v, (j <= i) & (i - j < window), softcap)

    with torch.no_grad():
        found = windowed(x, None)
        monkeypatch.setattr("armm.backbones.transformer.attend", masked)
        close(found, whole(x, None))


def test_window_reaches_so_far_and_no_further() -> None:
    backbone = build(replace(SMALL, window=3)).double()
    x = units(12, 16).double()
    with torch.no_grad():
        before = backbone(x, None)
        x[0, 2] += 1
        changed = (backbone(x, None) != before).any(-1)[0]
    assert changed.tolist() == [2 <= n <= 2 + 3 * 2 for n in range(12)]


# -------------------------------------------------------------- step by step


@pytest.mark.parametrize("variant", VARIANTS)
def test_backbone_is_causal(variant: str) -> None:
    config = VARIANTS[variant]
    backbone = build(config).double()
    x, values = units(10, config.width).double(), values_for(config, 10)
    values = values.double() if values is not None else None
    with torch.no_grad():
        before = backbone(x, values)
        for t in range(10):
            other = x.clone()
            other[0, t] += 1
            changed = (backbone(other, values) != before).any(-1)[0]
            assert not changed[:t].any()
            assert changed[t]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_numba)], ids=["plain", "compiled"])
@pytest.mark.parametrize("variant", VARIANTS)
@given(data=st.data())
@settings(max_examples=15)
def test_cached_steps_equal_parallel(variant: str, compiled: bool, data: st.DataObject) -> None:
    """Rows extended by different amounts, cut back, copied and extended again are always what they say they are."""
    config = VARIANTS[variant]
    backbone = build(config)
    n, n_rows = 12, 3
    x, values = units(n, config.width, n_rows), values_for(config, n, n_rows)
    with torch.no_grad():
        expected = backbone(x, values)
        state, length, of = backbone.state(n_rows), [0] * n_rows, list(range(n_rows))
        if compiled:
            state.compile()
        for _ in range(5):
            room = [row for row in range(n_rows) if length[row] < n]
            chosen = data.draw(st.lists(st.sampled_from(room), min_size=1, unique=True)) if room else []
            counts = [data.draw(st.integers(1, n - length[row])) for row in chosen]
            if chosen:
                width = max(counts)
                new = torch.zeros(len(chosen), width, config.width)
                new_values = torch.zeros(len(chosen), width, config.value_width) if values is not None else None
                for i, (row, count) in enumerate(zip(chosen, counts, strict=True)):
                    new[i, :count] = x[of[row], length[row] : length[row] + count]
                    if values is not None and new_values is not None:
                        new_values[i, :count] = values[of[row], length[row] : length[row] + count]
                stepwise = data.draw(st.booleans())
                found = state.extend(torch.tensor(chosen), new, new_values, counts, stepwise)
                for i, (row, count) in enumerate(zip(chosen, counts, strict=True)):
                    close(found[i, :count], expected[of[row], length[row] : length[row] + count], 1e-4)
                    length[row] += count
            if data.draw(st.booleans()):
                length = [data.draw(st.integers(max(own - 4, 0), own)) for own in length]
                state.truncate(length)
            index = data.draw(st.lists(st.integers(0, n_rows - 1), min_size=n_rows, max_size=n_rows))
            state.gather_rows(torch.tensor(index))
            length, of = [length[i] for i in index], [of[i] for i in index]


@pytest.mark.parametrize(
    "config", [SMALL, replace(SMALL, window=100), VARIANTS["values"]], ids=["all", "window", "values"]
)
def test_cache_grows_past_its_steps(config: Transformer) -> None:
    """The cache grows at 128 and 256 positions: what it held is still there, and rows of any length fit."""
    config = replace(config, n_layers=2)
    backbone = build(config)
    n = 2 * CACHE_STEP + 20
    x, values = units(n, config.width, 2), values_for(config, n, 2)
    with torch.no_grad():
        expected = backbone(x, values)
        state = backbone.state(2)
        rows = torch.arange(2)

        def extend(a: int, b: int) -> Tensor:
            return state.extend(rows, x[:, a:b], None if values is None else values[:, a:b], [b - a] * 2)

        found = [extend(0, CACHE_STEP - 3)]
        found += [extend(t, t + 1) for t in range(CACHE_STEP - 3, n)]
        close(torch.cat(found, dim=1), expected, 1e-4)
        state.truncate([CACHE_STEP - 1] * 2)
        close(extend(CACHE_STEP - 1, n), expected[:, CACHE_STEP - 1 :], 1e-4)
    assert isinstance(state, TransformerState)
    assert state.cache.shape[4] % CACHE_STEP == 0


# ------------------------------------------------------------------- options


def test_dropout_only_in_training() -> None:
    """Bits and samples come from the whole network."""
    plain, dropped = build(SMALL), build(replace(SMALL, dropout=0.4))
    x = units(6, 16)
    with torch.no_grad():
        expected = plain(x, None)
        assert torch.equal(dropped(x, None), expected)
        close(dropped.state(1).extend(torch.tensor([0]), x, None, [6]), expected)
        dropped.train()
        assert not torch.allclose(dropped(x, None), expected, atol=1e-2)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("part", ["embeddings", "attention", "blocks"])
def test_dropout_reaches_every_part(part: str, softcap: float | None) -> None:
    """Embeddings, attention weights and block outputs: with the two others whole, training still is random."""
    backbone: Any = build(replace(SMALL, dropout=0.4, n_layers=1, attention_softcap=softcap))
    backbone.train()
    block = backbone.blocks[0]
    if part != "embeddings":
        backbone.dropout.p = 0.0
    if part != "blocks":
        block.dropout.p = 0.0
    if part != "attention":
        block.attention.config = replace(SMALL, attention_softcap=softcap)
    x = units(6, 16)
    with torch.no_grad():
        assert not torch.allclose(backbone(x, None), backbone(x, None), atol=1e-3)


@pytest.mark.parametrize(
    ("config", "is_random"), [({"dropout": 0.4, "attention_dropout": 0.0}, False), ({"attention_dropout": 0.4}, True)]
)
def test_attention_weights_have_a_dropout_of_their_own(config: dict[str, float], is_random: bool) -> None:
    backbone: Any = build(replace(SMALL, n_layers=1, **config)).train()
    backbone.dropout.p = backbone.blocks[0].dropout.p = 0.0
    x = units(6, 16)
    with torch.no_grad():
        assert is_random != torch.equal(backbone(x, None), backbone(x, None))


def test_value_embeddings_change_every_second_layer_from_the_last() -> None:
    config = replace(SMALL, value_embeddings=True, n_layers=5)
    assert config.value_layers == (0, 2, 4)
    assert config.value_width == 3 * 16
    assert SMALL.value_width == 0
    backbone = build(config)
    x = units(6, 16)
    zero = torch.zeros(1, 6, config.value_width)
    with torch.no_grad():
        without = backbone(x, zero)
        for layer in range(3):
            values = zero.clone()
            values[:, 3, 16 * layer : 16 * (layer + 1)] = units(1, 16)[0]
            changed = (backbone(x, values) - without).abs().amax(-1)[0] > 1e-4
            assert changed.tolist() == [False] * 3 + [True] * 3


def test_residual_scalars_scale_the_stream_and_add_its_beginning() -> None:
    config = replace(SMALL, residual_scalars=True)
    backbone: Any = build(config)
    plain = build(SMALL)
    shared = plain.state_dict()
    backbone.load_state_dict(shared, strict=False)
    x = units(6, 16)
    with torch.no_grad():
        for block in backbone.blocks:
            block.scale.copy_(torch.tensor([1.0, 0.0]))
        close(backbone(x, None), plain(x, None), 1e-6)
        backbone.blocks[1].scale.copy_(torch.tensor([1.0, 0.5]))
        assert not torch.allclose(backbone(x, None), plain(x, None), atol=1e-3)
        first = torch.ones(1, 1, 16)
        close(backbone.blocks[1].enter(3 * first, first), 3.5 * first)


def test_blocks_start_as_the_identity() -> None:
    """At first a context is the normalised embedding, whatever the depth, so that deep models learn from the start."""
    backbone = SMALL.build()
    x = units(5, 16)
    with torch.no_grad():
        close(backbone(x, None), x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt())


def test_positions_matter() -> None:
    """With equal inputs everywhere only the positions tell one place from the next."""
    x = units(1, 16).expand(1, 6, 16).clone()
    x[0, 0] += 1
    for config in (SMALL, replace(SMALL, position="learned", max_positions=8)):
        out = build(config)(x, None)[0]
        assert not torch.allclose(out[2], out[4], atol=1e-3)


def test_learned_positions_refuse_contexts_that_are_too_long() -> None:
    """Beyond the table every position would be the last one, silently."""
    config = Transformer(width=8, n_heads=2, n_layers=1, position="learned", max_positions=16)
    for context in (17, None):
        with pytest.raises(InputError, match="its learned positions are 16; raise max_positions"):
            AutoregressiveModel({"letters": Letters(ended=False)}, config, ["letters"], context)
    model = AutoregressiveModel({"letters": Letters(ended=False)}, config, ["letters"], 16)
    state = model.state()
    state.extend([[1] * 16])
    assert state.done == [True]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 10, "n_heads": 4}, "width 10 must be an even multiple of n_heads 4"),
        ({"width": 12, "n_heads": 4}, "width 12 must be an even multiple of n_heads 4"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_heads 4 must be a multiple of n_kv_heads 3"),
        ({"window": 0}, "window is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
    ],
)
def test_transformers_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Transformer(**keys)


def test_what_is_not_kept_is_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activation checkpointing: the same gradients, dropout included, from two passes through every block."""
    config = Transformer(width=16, n_layers=2, n_heads=2, value_embeddings=True, residual_scalars=True, dropout=0.3)
    passes: list[Block] = []
    real = Block.whole
    monkeypatch.setattr(Block, "whole", lambda self, *rest: (passes.append(self), real(self, *rest))[1])
    found, counts = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        backbone = build(config).train()
        for block in backbone.modules():
            if isinstance(block, Block):
                block.recompute = recompute
        x, values = torch.randn(2, 7, 16), torch.randn(2, 7, config.value_width)
        passes.clear()
        backbone(x, values).square().sum().backward()
        counts.append(len(passes))
        found.append([parameter.grad for parameter in backbone.parameters()])
    assert counts == [2, 4]
    assert all(a is not None and torch.equal(a, b) and a.any() for a, b in zip(*found, strict=True))
