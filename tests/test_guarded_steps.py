"""Steps that would do harm are undone, and judging them reads nothing back from the device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_modalities import Letters, Picture, hash_parameters
from tiny_training import RAGGED, TINY, Given, fit, module_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from armm.batching import collate
from armm.errors import InputError
from armm.model import AutoregressiveModel
from armm.sequence import Segment
from armm.training import DataModule, GenerativeModule, Optimization
from armm.training.guard import Guard, StepGuard, tensors_in

pytestmark = pytest.mark.filterwarnings("ignore")


class NoReading(TorchDispatchMode):
    """Refuses to bring a number of a tensor to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if func is aten.index.Tensor else []
        reading = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default)
        assert func not in reading and not masks, f"a tensor was read: {func}"
        return func(*args, **(kwargs or {}))


class Poisoned(GenerativeModule):
    """Some steps' losses times something, or their gradients; and a copy of all weights and moments after each step."""

    factor = float("nan")
    steps: tuple[int, ...] = ()
    of_gradient = False
    select = False

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.step_guard.select = self.select
        self.states: list[list[Tensor]] = []

    def is_bad(self) -> bool:
        return self.trainer.global_step in self.steps

    def loss_sum(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        total, n_symbols = super().loss_sum(*arguments)
        return (total * self.factor if self.is_bad() and not self.of_gradient else total), n_symbols

    def on_after_backward(self) -> None:
        if self.is_bad() and self.of_gradient:
            next(p for p in self.parameters() if p.grad is not None).grad.view(-1)[0] = self.factor  # type: ignore

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        kept = [callback.state_dict() for callback in self.trainer.callbacks]  # type: ignore[attr-defined]
        tensors = [*self.parameters(), *tensors_in([self.trainer.optimizers[0].state_dict(), kept])]
        self.states.append([tensor.detach().clone() for tensor in tensors])


def poisoned(select: bool = False, of_gradient: bool = False, n_steps: int = 6, **options: Any) -> Poisoned:
    given = {"guard": options.pop("guard", Guard()), "optimization": options.pop("optimization", Optimization())}
    module = module_of(Letters(), layout=["letters"], cls=Poisoned, **given)
    module.select, module.of_gradient = select, of_gradient
    for name, value in options.items():
        setattr(module, name, value)
    fit(module, DataModule(Given(RAGGED), batch_size=4), max_steps=n_steps, gradient_clip_val=1.0)
    return module


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) > 4 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("of_gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("select", [False, True], ids=["not done", "undone on the device"])
def test_a_bad_step_changes_nothing(select: bool, of_gradient: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither weights nor moments nor step counts, bitwise; the steps around it do. The first step too."""
    module = poisoned(select, of_gradient, steps=(2, 3))
    states = module.states
    assert [equal(a, b) for a, b in pairwise(states)] == [False, True, True, False, False]
    assert all(tensor.isfinite().all() for tensor in states[-1])
    said = [line for line in capsys.readouterr().err.splitlines() if "was skipped" in line]
    assert [line.split()[1] for line in said] == ["2", "3"] and "item " in said[0]
    assert [step["step"] for step in module.skipped_steps] == [2, 3]
    # without it, the same steps that are good lead to the same weights
    first = poisoned(select, of_gradient, steps=(0,))
    fresh = module_of(Letters(), layout=["letters"])
    fresh.prepare(DataModule(Given(RAGGED)))
    hash_parameters(fresh.model)
    n = len(list(fresh.parameters()))
    assert equal(first.states[0][:n], list(fresh.parameters()))
    assert not any(tensor.any() for tensor in first.states[0][n:])


@pytest.mark.parametrize("select", [False, True], ids=["not done", "undone on the device"])
def test_a_bad_step_does_not_move_the_average(select: bool) -> None:
    """Of the weights, which would move towards those of the step before."""
    optimization = Optimization(ema=0.7)
    states = poisoned(select, steps=(2, 3), optimization=optimization).states
    assert len(states[0]) > len(poisoned(select).states[0])
    assert [equal(a, b) for a, b in pairwise(states)] == [False, True, True, False, False]


def test_doing_and_undoing_a_step_is_not_doing_it() -> None:
    """The way of accelerators leads where the way of the CPU does."""
    one, other = (poisoned(select, steps=(0, 3)).states for select in (False, True))
    assert equal(one[-1], other[-1])


def test_spikes_are_skipped_and_slow_change_is_not() -> None:
    """A loss of 20 times the mean once the mean is known; at the same height before, or risen to slowly, it is none."""
    options: dict[str, Any] = {"factor": 20.0, "guard": Guard(warmup=5), "n_steps": 10}
    assert [step["step"] for step in poisoned(steps=(8,), **options).skipped_steps] == [8]
    assert not poisoned(steps=(2,), **options).skipped_steps
    assert not poisoned(steps=(8,), **{**options, "guard": Guard(spike=None)}).skipped_steps
    guard = StepGuard(Guard(warmup=20), select=False)
    nothing = torch.zeros(1)
    random = torch.Generator().manual_seed(0)
    losses = [3 + k / 100 + 0.3 * float(torch.randn((), generator=random)) for k in range(400)]
    assert all(guard.judge(torch.tensor(loss), torch.tensor(1.0), nothing) for loss in losses)
    assert not guard.judge(torch.tensor(15.0), torch.tensor(1.0), nothing)
    assert not guard.judge(torch.tensor(7.0), torch.tensor(float("inf")), nothing)


def test_a_loss_that_stays_up_is_no_spike() -> None:
    """Weights that a good batch has upset must not be kept by skipping all that could mend them; NaN never is good."""
    guard, nothing = StepGuard(Guard(warmup=5, in_a_row=3), select=False), torch.zeros(1)

    def judged(*losses: float) -> list[bool]:
        return [bool(guard.judge(torch.tensor(loss), torch.tensor(1.0), nothing)) for loss in losses]

    assert all(judged(2.0, *[0.01, 0.012] * 200))
    assert judged(0.15, 0.3) == [True, False]  # one hard example among what is known by heart
    assert judged(0.01, 0.25, 0.4, 0.7, 0.6, 0.5, 0.3) == [True] + [False] * 3 + [True] * 3
    assert judged(*[0.01] * 60, 5.0, 0.01) == [True] * 60 + [False, True]
    assert not any(judged(*[float("nan")] * 9))


def test_a_run_that_diverges_ends() -> None:
    """After so many skipped steps of the latest, instead of going on and replacing a good bundle by one of NaNs."""
    module = module_of(Letters(), layout=["letters"], optimization=Optimization(lr=1e30, warmup=0.0))
    with pytest.raises(InputError, match=r"10 of the latest 100 steps were skipped.*lower model.optimization.lr"):
        fit(module, DataModule(Given(RAGGED), batch_size=8), max_steps=50)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    guard = StepGuard(Guard(limit=2, window=10), select=False)
    guard.skipped.extend([3, 13])
    assert not guard.gives_up(14)  # the first is too long ago
    guard.skipped.append(14)
    assert guard.gives_up(15)


@pytest.mark.parametrize(
    "options", [{"spike": 1.0}, {"in_a_row": 0}, {"warmup": 0}, {"limit": 0}, {"limit": 101}], ids=str
)
def test_impossible_guards_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="guard"):
        Guard(**options)


def test_training_reads_nothing_back_from_the_device() -> None:
    """No `.item()`, `bool()` or selection by a mask in what a step does around the model: each would make an
    accelerator wait. Only the verdict on a step is read, later."""
    module = poisoned(select=True, n_steps=1)
    data = DataModule(Given(RAGGED), batch_size=4)
    module.prepare(data)
    batch = next(iter(data.train_dataloader()))[0].to("cpu")
    guard, optimizer = module.step_guard, module.trainer.optimizers[0]
    nats = module.model.log_prob(batch)
    with NoReading():
        total, n_symbols = module.loss_sum(batch, nats)
        total.backward()
        guard.judge(total / n_symbols, torch.tensor(1.0), torch.zeros(3))
        guard.before_step(list(module.parameters()), optimizer)
    for read in (lambda x: bool(x > 1), lambda x: x.item(), lambda x: x[x > 1], lambda x: x.nonzero()):
        with pytest.raises(AssertionError, match="read"), NoReading():
            read(torch.zeros(2)[:1])


def test_the_model_reads_nothing_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free documents of two modalities of any length, one with a coded header, forward and backward."""
    model = AutoregressiveModel({"letters": Letters(), "picture": Picture(sizes_differ=True)}, TINY)
    pictures = [Segment("picture", torch.randint(5, (rows, 4)), None, (rows, 1)) for rows in (1, 4, 2)]
    letters = [model.modalities["letters"].encode(RAGGED[i]["letters"]) for i in (2, 5, 0)]
    documents = [[letters[0], pictures[0]], [pictures[1]], [pictures[2], *letters[1:]]]
    batch = collate(documents, model.grammar).to("cpu")
    monkeypatch.setattr(Tensor, "tolist", None)  # which the mode does not see
    with NoReading():
        payload, structure = model.log_prob(batch, only_scored=True, normalisers=True).scored(batch)
        (payload + structure).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
