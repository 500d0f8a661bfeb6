"""Muon and AdamW as one optimiser: who gets what at which rate, and that our Muon is torch's."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_modalities import Clip, Letters, hash_parameters, hash_symbols
from torch.optim import Muon
from torch.optim.lr_scheduler import LambdaLR

from armm.backbones import NoBackbone, Transformer
from armm.backbones.backbone import BackboneConfig
from armm.batching import collate
from armm.errors import InputError
from armm.heads import Categorical
from armm.model import AutoregressiveModel
from armm.training.muon import BatchedMuon
from armm.training.optim import MuonAdamW, Optimization, build

RICH = Transformer(width=16, n_layers=2, n_heads=2, value_embeddings=True, residual_scalars=True)


def model_of(backbone: BackboneConfig = RICH, tied: bool = False, context: int | None = 16) -> AutoregressiveModel:
    letters = Letters(head=Categorical(tied=tied))
    model = AutoregressiveModel({"letters": letters, "clip": Clip()}, backbone, context=context)
    hash_parameters(model)
    return model


def names_of(optimizer: torch.optim.Optimizer, model: AutoregressiveModel) -> list[list[str]]:
    """The parameters of every group, by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def train(model: AutoregressiveModel, optimizer: torch.optim.Optimizer, n_steps: int, first: int = 0) -> None:
    for step in range(first, first + n_steps):
        letters = model.modalities["letters"].encode(hash_symbols(5, 6, seed=step))
        clip = model.modalities["clip"].encode(hash_symbols(7, 5, seed=step))
        batch = collate([[letters, clip]], model.grammar)
        payload, structure = model.log_prob(batch).scored(batch)
        optimizer.zero_grad()
        (payload + structure).backward()
        optimizer.step()


# ------------------------------------------------------------------ who gets what


@pytest.mark.parametrize(
    "backbone",
    [
        RICH,
        Transformer(
            width=16, n_layers=1, n_heads=2, position="learned", norm="layer", norm_gain=True, mlp="gelu", bias=True
        ),
    ],
    ids=["modern", "gpt2"],
)
def test_muon_gets_exactly_the_matrices_of_the_backbone(backbone: BackboneConfig) -> None:
    """Embeddings, heads, norms, biases and learned positions (a table, not a map) stay with AdamW."""
    model = model_of(backbone)
    groups = names_of(build(model, Optimization()), model)
    maps = {
        f"backbone.{name}.weight"
        for name, module in model.backbone.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert maps and set(groups[-1]) == maps
    assert not maps & {name for group in groups[:-1] for name in group}


def test_every_parameter_is_in_one_group() -> None:
    model = model_of()
    found = [name for group in names_of(build(model, Optimization()), model) for name in group]
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())


def test_tied_weights_appear_once() -> None:
    """Twice in the groups, an embedding would be updated twice a step."""
    model = model_of(tied=True)
    assert model.head("letters").weight is model.embedders["letters"].weight  # type: ignore[union-attr]
    parameters = [id(p) for group in build(model, Optimization()).param_groups for p in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(model.parameters()))


@pytest.mark.parametrize("model", [model_of(NoBackbone(width=8)), model_of()], ids=["no backbone", "muon_lr 0"])
def test_without_matrices_or_muon_everything_is_adamw(model: AutoregressiveModel) -> None:
    optimizer = build(model, Optimization(muon_lr=0.0))
    assert isinstance(optimizer, MuonAdamW) and len(optimizer.parts) == 1
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_only_matrices_decay() -> None:
    """Norms, biases and gains pulled to zero change what the model can say, not how smooth it is."""
    model = model_of()
    optimizer = build(model, Optimization(weight_decay=0.1))
    for group in optimizer.param_groups:
        assert all((parameter.dim() >= 2) == (group["weight_decay"] == 0.1) for parameter in group["params"])


def test_rates_are_those_of_the_recipe() -> None:
    optimizer = build(model_of(), Optimization(lr=0.004, muon_lr=0.03, momentum=0.8, betas=(0.7, 0.6)))
    adamw, muon = optimizer.param_groups[0], optimizer.param_groups[-1]
    assert (adamw["lr"], adamw["betas"]) == (0.004, (0.7, 0.6))
    assert (muon["lr"], muon["momentum"]) == (0.03, 0.8)


# ------------------------------------------------------------------ rates by kind


def test_every_kind_has_its_own_rate() -> None:
    """Embedding tables, head matrices and vectors at their own rates; what has none of its own at `lr`."""
    model = model_of()
    config = Optimization(lr=0.004, embedding_lr=0.5, head_lr=0.06, scalar_lr=0.7, muon_lr=0.0)
    optimizer = build(model, config)
    rates = {
        name: group["lr"]
        for group, names in zip(optimizer.param_groups, names_of(optimizer, model), strict=True)
        for name in names
    }
    assert rates["embedders.letters.weight"] == rates["values.letters.weight"] == 0.5
    assert rates["heads.letters.weight"] == rates["heads.clip.gates"] == rates["decisions.clip.weight"] == 0.06
    assert rates["heads.letters.bias"] == rates["backbone.blocks.0.scale"] == rates["begin"] == 0.7
    assert rates["backbone.blocks.0.mlp.enter.weight"] == 0.004
    assert {group["lr"] for group in build(model, Optimization(lr=0.004, muon_lr=0.0)).param_groups} == {0.004}


def test_muon_can_take_the_hidden_maps_of_heads() -> None:
    """Gates, residual and skip maps; not tables, not the output, whose rows are symbols."""
    model = model_of()
    optimizer = build(model, Optimization(muon_head_lr=0.01))
    taken = {name for name in names_of(optimizer, model)[-1] if not name.startswith("backbone.")}
    assert "heads.clip.gates" in taken and "heads.clip.upsample.weight" in taken
    assert not any(word in name for name in taken for word in ("symbol", "distribution", "letters", "bias"))
    assert sorted(n for g in names_of(optimizer, model) for n in g) == sorted(n for n, _ in model.named_parameters())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    train(model, optimizer, 2)
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters() if n in taken)


# --------------------------------------------------------------------------- Muon


def matrices(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def stepped(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], n: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach() for p in params]


def test_batched_muon_is_torchs() -> None:
    """Tall, wide and square matrices, several of a shape: the same updates but for bfloat16's rounding, the same
    state."""
    shapes = [(16, 48), (48, 16), (16, 16), (16, 48), (64, 16)]
    options: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    ours, theirs = matrices(*shapes), matrices(*shapes)
    begin = [p.detach().clone() for p in ours]
    own, other = BatchedMuon(ours, **options), Muon(theirs, **options)
    for one, same, first in zip(stepped(own, ours), stepped(other, theirs), begin, strict=True):
        torch.testing.assert_close(one - first, same - first, rtol=0, atol=0.05 * float((same - first).abs().max()))
        assert (one - same).norm() < 0.02 * (same - first).norm()
    other.load_state_dict(own.state_dict())
    for one, same in zip(ours, theirs, strict=True):
        assert torch.equal(own.state[one]["momentum_buffer"], other.state[same]["momentum_buffer"])


def test_muon_takes_stacks_and_convolutions_as_matrices() -> None:
    """Three dimensions are a stack of matrices, four one matrix by its first: never one map for a whole stack."""
    stack, convolution = matrices((3, 8, 16), (8, 4, 3, 2))
    apart = [torch.nn.Parameter(own.detach().clone()) for own in stack] + [
        torch.nn.Parameter(convolution.detach().clone().flatten(1))
    ]
    whole = stepped(BatchedMuon([stack, convolution], 0.02, 0.9, 0.0), [stack, convolution])
    generator = torch.Generator().manual_seed(1)
    optimizer = BatchedMuon(apart, 0.02, 0.9, 0.0)
    for _ in range(3):
        gradients = [*torch.randn((3, 8, 16), generator=generator), torch.randn((8, 4, 3, 2), generator=generator)]
        for p, gradient in zip(apart, gradients, strict=True):
            p.grad = gradient.reshape(p.shape)
        optimizer.step()
    torch.testing.assert_close(whole[0], torch.stack([p.detach() for p in apart[:3]]), rtol=0, atol=2e-3)
    torch.testing.assert_close(whole[1].flatten(1), apart[3].detach(), rtol=0, atol=2e-3)


def test_muon_updates_are_near_orthogonal() -> None:
    (matrix,) = matrices((16, 48))
    before = matrix.detach().clone()
    (after,) = stepped(BatchedMuon([matrix], 1.0, 0.9, 0.0), [matrix], n=1)
    singular = torch.linalg.svdvals(before - after)
    assert float(singular.min()) > 0.5 and float(singular.max()) < 1.4


# ----------------------------------------------------------------------- schedule


def test_a_scheduler_reaches_both_optimisers() -> None:
    """The groups of a combined optimiser are the parts' own dictionaries; copies would leave the rates as they were."""
    optimizer = build(model_of(), Optimization(lr=0.004, muon_lr=0.03))
    assert isinstance(optimizer, MuonAdamW)
    LambdaLR(optimizer, lambda step: 0.5)
    rates = [group["lr"] for part in optimizer.parts for group in part.param_groups]
    assert rates == [0.002] * (len(rates) - 1) + [0.015]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.0},
        {"muon_lr": -1.0},
        {"weight_decay": -0.1},
        {"warmup": -0.1},
        {"warmup": 0.6, "decay": 0.6},
        {"head_lr": -1e-3},
        {"final": 1.5},
        {"ema": 1.0},
        {"z_loss": -1.0},
        {"muon_head_lr": -0.01},
        {"lr": math.nan},
        {"muon_lr": math.inf},
        {"weight_decay": math.inf},
        {"z_loss": math.nan},
        {"momentum": -1.0},
        {"momentum": 1.5},
        {"betas": (1.5, 0.9)},
        {"betas": (0.9, math.nan)},
    ],
    ids=str,
)
def test_impossible_rates_are_refused(options: dict[str, Any]) -> None:
    """All of these end in a traceback later, or quietly in weights that are no numbers."""
    with pytest.raises(InputError, match=f"optimization: .*{next(iter(options))}"):
        Optimization(**options)


def test_the_decay_of_wsd_does_not_limit_a_cosines_warm_up() -> None:
    config = Optimization(schedule="cosine", warmup=0.6)
    assert config.factor(0.3, 0.0) == pytest.approx(0.5)
    assert config.factor(0.8, 0.0) == pytest.approx(0.5)


# ------------------------------------------------------------------------- resume


def test_state_goes_on_where_it_was_saved() -> None:
    """2N steps equal N steps, save, load into a new optimiser, N steps: bitwise, momenta and scheduler included."""
    model = model_of()
    optimizer = build(model, Optimization())
    train(model, optimizer, 3)
    twin = deepcopy(model)
    other = build(twin, Optimization())
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    for group, twin_group in zip(optimizer.param_groups, other.param_groups, strict=True):
        group["lr"] = twin_group["lr"] = group["lr"] / 2  # as a scheduler would, after loading too
    train(model, optimizer, 3, first=3)
    train(twin, other, 3, first=3)
    for (name, one), same in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, same), name


def test_a_new_optimiser_without_the_state_differs() -> None:
    """What the test above compares does depend on the momenta."""
    model = model_of()
    optimizer = build(model, Optimization())
    train(model, optimizer, 3)
    twin = deepcopy(model)
    train(model, optimizer, 1, first=3)
    train(twin, build(twin, Optimization()), 1, first=3)
    assert not all(torch.equal(one, other) for one, other in zip(model.parameters(), twin.parameters(), strict=True))
