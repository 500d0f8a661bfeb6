"""Steps that would do harm are skipped: a loss or gradient that is not finite, a loss far above what it was.

Everything is judged on the device, once per optimiser step, over all accumulated batches and ranks; the verdict is read
by the host one step later, so nothing waits for it. A skipped step changes neither parameters nor moments, bitwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from armm.errors import InputError
from armm.training.layout import local

DECAY = 0.98  # of the running mean and variance of the loss: about the last 50 steps
DEVIATIONS = 6.0  # a spike is also so many standard deviations above the mean, for losses that vary much by nature
SHARE = 0.1  # and so much of the highest mean, for losses near 0, which one hard example multiplies


@dataclass(frozen=True)
class Guard:
    """Which steps are skipped, and when a run gives up.

    Attributes:
        spike: a loss of more than so many times its running mean (and 6 standard deviations above it, and a tenth of
            what the mean once was) is a spike, and its step is skipped; null skips only what is not finite.
        in_a_row: so many spikes after each other are skipped, no more: a loss that stays up comes of the weights, not
            of a batch, and only further steps bring it down.
        warmup: steps before the first that can be a spike.
        limit: the run ends when so many of its latest `window` steps were skipped.
        window: in steps.
    """

    spike: float | None = 2.0
    in_a_row: int = 3
    warmup: int = 100
    limit: int = 10
    window: int = 100

    def __post_init__(self) -> None:
        if self.spike is not None and not self.spike > 1:
            raise InputError(f"guard.spike is {self.spike}, it must be more than 1 times the mean; null for no limit")
        if self.in_a_row < 1:
            raise InputError(f"guard.in_a_row is {self.in_a_row}, it must be at least 1; guard.spike: null skips none")
        if self.warmup < 1 or not 1 <= self.limit <= self.window:
            raise InputError(
                f"guard: warmup {self.warmup} must be at least 1, limit {self.limit} from 1 to window {self.window}"
            )


@dataclass(frozen=True)
class Step:
    """What is known of an optimiser step.

    Attributes:
        number: of the step, from 0. epoch, batches: whose gradients it took, numbered from 0 in their epoch.
        good: whether it was done. loss: in nats per symbol. norm: of the gradient, before clipping. mean: of the losses
            before it.
        requests: what any rank asked for with `StepGuard.judge`, added up over the ranks.
    """

    number: int
    epoch: int
    batches: range
    good: bool
    loss: float
    norm: float
    mean: float
    requests: tuple[float, ...]


class StepGuard:
    """Judges steps, undoes the bad ones, and tells the host.

    Args:
        select: undo a bad step on the device instead of not doing it: for accelerators, where the host would have to
            wait for the verdict. Takes a copy of parameters and moments for the moment of the step.
    """

    def __init__(self, config: Guard, select: bool) -> None:
        self.config, self.select = config, select
        self.good: Tensor = torch.ones((), dtype=torch.bool)
        """() bool: the latest step was done; for whatever else follows the weights, such as their moving average."""
        self.skipped: deque[int] = deque()  # the latest skipped steps
        # number of good steps, mean, variance, steps skipped since the last good one, highest mean
        self._statistics = torch.zeros(5)
        self._verdict = torch.zeros(4)
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._verdicts: deque[tuple[int, int, range, Tensor, Any]] = deque()

    def judge(self, loss: Tensor, norm: Tensor, requests: Tensor) -> Tensor:
        """() bool: whether a step of this loss and gradient norm may be done.

        Args:
            loss, norm: () of the whole step, over all ranks. requests: (R,) anything that shall reach the host with the
            verdict.
        """
        n, mean, variance, n_skipped, highest = self._statistics.to(loss.device, torch.float32)
        loss = loss.float()
        good = loss.isfinite() & norm.isfinite()
        if self.config.spike is not None:
            limit = torch.maximum(mean * self.config.spike, mean + DEVIATIONS * variance.sqrt())
            limit = torch.maximum(limit, highest * SHARE)
            is_no_spike = (n < self.config.warmup) | (loss <= limit)
            good = good & (is_no_spike | (n_skipped >= self.config.in_a_row))
        # the plain mean of the first steps, then a running one
        weight = torch.maximum(1 / (n + 1), torch.full_like(n, 1 - DECAY))
        change = loss - mean
        spread = (1 - weight) * (variance + weight * change**2)
        new = mean + weight * change
        after = torch.stack([n + 1, new, spread, torch.zeros_like(n), torch.maximum(highest, new)])
        self._statistics = torch.where(good, after, torch.stack([n, mean, variance, n_skipped + 1, highest]))
        self.good = good
        self._verdict = torch.cat([torch.stack([good.float(), loss, norm.float(), mean]), requests.float()])
        return good

    def before_step(self, parameters: Iterable[Tensor], optimizer: Optimizer) -> None:
        """Have the step that comes now do nothing if it is bad. Called when the gradients are complete."""
        parameters = list(parameters)
        if not self.select:
            if not self.good:
                for parameter in parameters:
                    parameter.grad = None  # what an optimiser leaves alone
            return
        tensors = [local(p.detach()) for p in parameters] + tensors_in(optimizer.state_dict())
        self._before = {tensor.data_ptr(): (tensor, tensor.clone()) for tensor in tensors if tensor.numel()}

    @torch.no_grad()
    def after_step(self, number: int, epoch: int, batches: range, optimizer: Optimizer) -> list[Step]:
        """Undo the step if it was bad; the steps whose verdicts the host has by now, without waiting."""
        if self.select:
            for tensor in tensors_in(optimizer.state_dict()):
                if tensor.data_ptr() not in self._before:  # made by this very step
                    self._before[tensor.data_ptr()] = tensor, torch.zeros_like(tensor)
            for tensor, old in self._before.values():
                # AdamW that is neither fused nor capturable counts its steps on the CPU, and waits here
                good = self.good if tensor.device == self.good.device else self.good.to(tensor.device)
                torch.where(good, tensor, old, out=tensor)
            self._before = {}
        host, event = self._verdict, None
        if self._verdict.is_cuda:
            host = torch.empty(self._verdict.shape, dtype=self._verdict.dtype, pin_memory=True)
            host.copy_(self._verdict, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._verdicts.append((number, epoch, batches, host, event))
        return self.known(late=0 if event is None else 1)

    def known(self, late: int = 0) -> list[Step]:
        """The steps that the host has not been told of, but for the latest few."""
        steps = []
        while len(self._verdicts) > late:
            number, epoch, batches, host, event = self._verdicts.popleft()
            if event is not None:
                event.synchronize()
            good, loss, norm, mean, *requests = host.tolist()
            steps.append(Step(number, epoch, batches, bool(good), loss, norm, mean, tuple(requests)))
            if not good:
                self.skipped.append(number)
        return steps

    def gives_up(self, number: int) -> bool:
        """Whether too many of the steps up to this one were skipped."""
        while self.skipped and self.skipped[0] <= number - self.config.window:
            self.skipped.popleft()
        return len(self.skipped) >= self.config.limit

    def state_dict(self) -> dict[str, Any]:
        # a run that gave up and is resumed, with other rates perhaps, has its chances again
        skipped = list(self.skipped) if len(self.skipped) < self.config.limit else []
        return {"statistics": self._statistics.tolist(), "skipped": skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._statistics, self.skipped = torch.tensor(state["statistics"]), deque(state["skipped"])


def tensors_in(state: Any) -> list[Tensor]:
    """All tensors in nested dictionaries and lists."""
    if isinstance(state, Tensor):
        return [local(state)]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]
