"""Laws 2 to 4 on every modality, head and backbone; and each check catches what is planted to break its law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from laws.cases import BACKBONES, CASES, COUNTABLE
from torch import Tensor

from armm.backbones import transformer
from armm.backbones.transformer import TransformerState
from armm.grammar import Grammar, Stage
from armm.heads import CausalConvHead, categorical, causal_conv, distributions, halo
from armm.model import AutoregressiveModel
from armm.state import State
from armm.testing import LawBroken, check_causal, check_normalised, check_views_agree

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize("backbone", ["none", "small"])
@pytest.mark.parametrize("case", COUNTABLE)
def test_probabilities_of_all_documents_sum_to_one(case: str, backbone: str) -> None:
    check_normalised(COUNTABLE[case].model(backbone), limit=1100)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("case", CASES)
def test_nothing_depends_on_what_comes_later(case: str, backbone: str) -> None:
    model = CASES[case].model(backbone)
    check_causal(model, CASES[case].documents(model)[-1])


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("case", CASES)
def test_step_by_step_is_the_same_as_in_parallel(case: str, backbone: str) -> None:
    model = CASES[case].model(backbone)
    check_views_agree(model, CASES[case].documents(model))


# ------------------------------------------------------------- planted faults


def wrap(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Put `change(original, *arguments)` in the place of `owner.name`."""
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments, **options: change(original, *arguments, **options))


def patch(owner: Any, name: str, change: Callable[..., Any]) -> Plant:
    return lambda monkeypatch: wrap(monkeypatch, owner, name, change)


def shifted(x: Tensor, dim: int) -> Tensor:
    """A little of what stands one further on."""
    return x + 0.1 * torch.roll(x, -1, dim)


def convolve_right(original: Any, head: CausalConvHead, x: Tensor, bias: Tensor) -> Any:
    """A convolution with right context: each place also sees the next symbol."""
    features, inputs = original(head, x, bias)
    return features + F.pad(x[:, 1:], (0, 0, 0, 1)).mean(-1, keepdim=True), inputs


def own_first_symbol(original: Any, model: AutoregressiveModel, batch: Any) -> Tensor:
    """A unit's context knows its own first symbol, at unit borders only."""
    contexts = original(model, batch).clone()
    for segment in batch.segments.values():
        present = segment.present()
        rows = segment.rows[:, None].expand_as(present)[present]
        position = (segment.starts[:, None] + torch.arange(present.shape[1]))[present]
        contexts[rows, position] += 0.01 * segment.symbols[..., 0][present][:, None]
    return contexts


def see_everything(original: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, causal: bool, *rest: Any) -> Tensor:
    return original(q, k, v, None, False, *rest)


def later_end(original: Any, model: AutoregressiveModel, *arguments: Any) -> Tensor:
    """End decisions read the batch's later ones, as a bug in indexing would."""
    logits = original(model, *arguments)
    return logits if logits.dim() == 2 else shifted(logits.masked_fill(logits.isinf(), 0.0), 1)


LEAKS: dict[str, tuple[str, str, Plant]] = {
    "a convolution with right context": ("image rows", "none", patch(CausalConvHead, "stack", convolve_right)),
    "a halo that sees its own row": (
        "image rows", "none", patch(halo.RowHalo, "forward", lambda original, *a: shifted(original(*a), 1))
    ),
    "a halo of blocks that sees the next block": (
        "image patches", "none", patch(halo.BlockHalo, "forward", lambda original, *a: shifted(original(*a), 1))
    ),
    "attention without a mask": ("text bytes", "llama", patch(transformer, "attend", see_everything)),
    "a window that reaches forward": (
        "audio", "small",
        patch(transformer, "attend", lambda f, q, k, v, m, *rest: f(q, k, v, None if m is None else m | m.mT, *rest)),
    ),
    "no shift": (
        "text bytes", "small", patch(AutoregressiveModel, "contexts", lambda f, *a: torch.roll(f(*a), -1, 1))
    ),
    "no shift of value embeddings": (
        "text bytes", "small", patch(transformer.TransformerBackbone, "split_values",
              lambda f, b, v: f(b, None if v is None else torch.roll(v, -1, 1)))
    ),
    "a context that knows its unit's first symbol": (
        "audio", "small", patch(AutoregressiveModel, "contexts", own_first_symbol)
    ),
    "a softmax over time": (
        "text bytes", "small", patch(categorical.CategoricalHead, "distribution",
              lambda f, head, context: f(head, context) - f(head, context).mean(1, keepdim=True))
    ),
    "blue that is not hidden from green": (
        "image RGB rows", "none", patch(distributions.SoftmaxDistribution, "log_prob",
              lambda f, own, x, s: f(own, x + s.sum(-1, keepdim=True), s))
    ),
    "end decisions that know the next one": (
        "text bytes in fours", "small", patch(AutoregressiveModel, "structure_logits", later_end)
    ),
    "a context that knows how long the row is": (
        "free documents", "small",
        patch(AutoregressiveModel, "contexts", lambda f, m, b: f(m, b) + 0.01 * b.lengths[:, None, None]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAKS)
def test_leak_from_the_future_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, backbone, plant = LEAKS[name]
    model = CASES[case].model(backbone)
    document = CASES[case].documents(model)[-1]
    check_causal(model, document)
    plant(monkeypatch)
    with pytest.raises(LawBroken, match=r"^causal: "):
        check_causal(model, document)


def test_leak_through_gradients_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is the same whatever comes later, but whose gradient is not zero."""

    class Leak(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return shifted(gradient, 1) + shifted(gradient.flip(1), 1).flip(1)

    model = CASES["text bytes"].model("llama")
    document = CASES["text bytes"].documents(model)[-1]
    wrap(monkeypatch, transformer.TransformerBackbone, "forward", lambda f, own, x, v: Leak.apply(f(own, x, v)))
    with pytest.raises(LawBroken, match="gradient"):
        check_causal(model, document)


def forget_bin_width(original: Any, own: Any, mean: Tensor, log_scale: Tensor, level: Tensor) -> Tensor:
    inner = (level > 0) & (level < own.vocab - 1)
    return original(own, mean, log_scale, level) + torch.where(inner, 0.05, 0.0)


UNNORMALISED: dict[str, tuple[str, Plant]] = {
    "a head that adds a constant": (
        "text", patch(categorical.CategoricalHead, "log_prob", lambda f, *a: f(*a) + 1e-3)
    ),
    "a mixture whose bins are too wide": (
        "image RGB rows, mixture",
        patch(distributions.LogisticMixtureDistribution, "_log_mass", forget_bin_width),
    ),
    "a mixture whose weights know every channel": (
        "image RGB rows, mixture", patch(distributions.LogisticMixtureDistribution, "log_prob",
              lambda f, own, x, s: f(own, x + 0.1 * s.sum(-1, keepdim=True), s))
    ),
    "a symbol that nobody can code": (
        "image pixels", patch(categorical.CategoricalHead, "_sums",
              lambda f, own, x: F.pad(f(own, x), (0, 1)) if x.dim() > 2 else f(own, x))
    ),
    "end decisions that promise the impossible": (
        "text in threes", patch(AutoregressiveModel, "structure_logits",
              lambda f, *a: f(*a).masked_fill(f(*a).isinf(), -3.0))
    ),
    "a control symbol counted twice": (
        "free documents", patch(AutoregressiveModel, "structure_logits",
              lambda f, m, slot, *a: f(m, slot, *a) if slot.stage != Stage.CONTROL else f(m, slot, *a)[:, [0, 1, 1, 2]])
    ),
    "a header size too many": (
        "image of any size", patch(AutoregressiveModel, "structure_logits",
              lambda f, m, slot, *a: F.pad(f(m, slot, *a), (0, int(slot.stage == Stage.HEADER))))
    ),
    "a channel left out": (
        "image RGB rows", patch(distributions.SoftmaxDistribution, "log_prob",
              lambda f, *a: f(*a) * torch.tensor([1.0, 0.0, 1.0]))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNNORMALISED)
def test_mass_that_is_lost_or_invented_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, plant = UNNORMALISED[name]
    model = COUNTABLE[case].model()
    plant(monkeypatch)
    with pytest.raises(LawBroken, match=r"^normalised: .* mass "):
        check_normalised(model, limit=600)


def test_law_counts_documents_that_it_cannot_list_to_the_end() -> None:
    """Where nothing ends a text, the sum is over all beginnings of one length."""
    model = COUNTABLE["text that nothing ends"].model()
    check_normalised(model, limit=30)
    model.begin.data.fill_(float("nan"))
    with pytest.raises(LawBroken, match="mass nan"):
        check_normalised(model, limit=30)


def stay(original: Any, *arguments: Any) -> None:
    """Do nothing."""


def keep_synced(original: Any, state: State, lengths: Any) -> None:
    """Truncation takes symbols back, the heads' states go on as if it had not."""
    before = list(state._synced)
    original(state, lengths)
    state._synced = [old if new is None else new for old, new in zip(before, state._synced, strict=True)]


def keep_length(original: Any, state: TransformerState, lengths: list[int]) -> None:
    """Keys and values of one unit too many."""
    original(state, [length + 1 for length in lengths])


def swap_rows(original: Any, state: TransformerState, index: Tensor) -> None:
    original(state, index)
    state.cache = state.cache.flip(2)


def keep_history(original: Callable[..., None], own: causal_conv.ConvState, *arguments: Any) -> None:
    history = own.history.clone()
    original(own, *arguments)
    own.history = history


STEPS: dict[str, tuple[str, str, Plant]] = {
    "a backbone that does not forget": ("text bytes", "llama", patch(TransformerState, "truncate", stay)),
    "a backbone that forgets one unit too few": ("audio", "small", patch(TransformerState, "truncate", keep_length)),
    "a head that does not forget": ("audio", "small", patch(State, "truncate", keep_synced)),
    "a head whose rows go elsewhere": (
        "image rows", "small", patch(causal_conv.ConvState, "gather_rows", lambda f, own, index: f(own, index.flip(0)))
    ),
    "keys and values in another order of rows": (
        "text bytes", "gpt2",
patch(TransformerState, "gather_rows", swap_rows),
    ),
    "a row that goes on where the one above ended": (
        "image rows", "none", patch(causal_conv.ConvState, "open", keep_history)
    ),
    "a halo of the unit before": (
        "image patches", "none",
        patch(halo.BlockHalo, "at", lambda f, own, symbols, index, h: f(own, symbols, (index - 1).clamp(min=0), h)),
    ),
    "positions that start anew after a prompt": (
        "text bytes", "small", patch(TransformerState, "_blocks",
              lambda f, own, x, values, positions, attended: f(own, x, values, positions - positions[0], attended))
    ),
    "a prompt that is read one symbol short": (
        "audio", "none", patch(causal_conv.ConvState, "load",
              lambda f, own, rows, context, symbols, lengths, header: f(own, rows, context, symbols.index_put(
                  (torch.arange(len(rows)), (lengths - 1).clamp(min=0) // 4, (lengths - 1).clamp(min=0) % 4),
                  torch.tensor(0)), lengths, header))
    ),
    "logits of another channel": (
        "image RGB rows", "none",
        patch(distributions.SoftmaxDistribution, "logits", lambda f, own, x, known: f(own, x, known * (x.dim() > 2))),
    ),
    "end decisions that count from the document's start": (
        "free documents", "small",
        patch(Grammar, "decision_mask", lambda f, own, name, index: f(own, name, index + (index.dim() == 1))),
    ),
    "log_prob of another temperature than logits": (
        "text bytes", "small",
        patch(categorical.CategoricalHead, "log_prob", lambda f, own, context, *a: f(own, 1.1 * context, *a)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_view_that_differs_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, backbone, plant = STEPS[name]
    model = CASES[case].model(backbone)
    documents = CASES[case].documents(model)
    check_views_agree(model, documents)
    plant(monkeypatch)
    with pytest.raises(LawBroken, match=r"^two views agree: "):
        check_views_agree(model, documents)
