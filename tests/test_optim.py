"""Muon and AdamW as one optimiser, and the schedule of both."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tiny_modalities import Clip, Letters, hash_parameters, hash_symbols
from torch.optim.lr_scheduler import LambdaLR

from armm.backbones import NoBackbone, Transformer
from armm.backbones.backbone import BackboneConfig
from armm.errors import InputError
from armm.heads import Categorical
from armm.model import AutoregressiveModel
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
        batch = model.grammar.collate([[letters, clip]])
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


# ----------------------------------------------------------------------- schedule


def test_rates_rise_stay_and_fall() -> None:
    """100 steps with 10 % of warm-up and 40 % of decay: linear up, flat, linear down, and zero after the last step."""
    at = Optimization(warmup=0.1, decay=0.4).factor(100)
    assert [at(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert {at(step) for step in range(10, 61)} == {1.0}
    assert [at(step) for step in range(60, 101)] == pytest.approx([(100 - step) / 40 for step in range(60, 101)])
    assert at(99) > 0 == at(100)


@pytest.mark.parametrize("n_steps", [0, 1, 2, 1000])
def test_runs_of_any_length_learn_from_the_first_step(n_steps: int) -> None:
    """A warm-up of a fraction of a step must not divide by zero or begin at zero."""
    for config in (Optimization(), Optimization(warmup=0.0, decay=0.0), Optimization(warmup=0.5, decay=0.5)):
        at = config.factor(n_steps)
        assert all(0 < at(step) <= 1 for step in range(n_steps))


def test_a_scheduler_reaches_both_optimisers() -> None:
    """The groups of a combined optimiser are the parts' own dictionaries; copies would leave the rates as they were."""
    optimizer = build(model_of(), Optimization(lr=0.004, muon_lr=0.03))
    assert isinstance(optimizer, MuonAdamW)
    LambdaLR(optimizer, lambda step: 0.5)
    rates = [group["lr"] for part in optimizer.parts for group in part.param_groups]
    assert rates == [0.002] * (len(rates) - 1) + [0.015]


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.0}, {"muon_lr": -1.0}, {"weight_decay": -0.1}, {"warmup": -0.1}, {"warmup": 0.6, "decay": 0.6}],
    ids=str,
)
def test_impossible_rates_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="optimization"):
        Optimization(**options)  # type: ignore[arg-type]


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
