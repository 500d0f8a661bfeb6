"""`trainer.strategy: sharded`: one model over many devices, by FSDP2 and tensor parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, distributed
from torch.optim import Optimizer

from armm.errors import InputError
from armm.model import AutoregressiveModel
from armm.training.checkpoints import CheckedIO, DamagedError, check, seal
from armm.training.layout import local, part_of, spread, whole
from armm.training.optim import MuonAdamW
from armm.training.sharded_checkpoints import Place, read, with_tensors, write
from armm.training.sharding import DATA, Orders, is_sharded, reordered, shard

NET = "net."  # the model's place in the module that trains it


class Sharded(ModelParallelStrategy):
    """Weights, gradients and moments are dealt out over all processes; a checkpoint is a folder with a file of each.

    Args:
        data: processes that take different data; all that there are, divided by `tensor`.
        tensor: processes that share each block's heads and hidden features. They exchange activations several times a
            block, so they belong in one machine.
    """

    def __init__(self, data: int | Literal["auto"] = "auto", tensor: int = 1) -> None:
        if tensor < 1 or (data != "auto" and data < 1):
            raise InputError(f"trainer.strategy: data is {data}, tensor {tensor}; at least 1 is possible")
        super().__init__(data_parallel_size=data, tensor_parallel_size=tensor)
        self.orders: Orders = {}
        """Of the rows of the weights whose rows are not in the model's own order."""

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True  # by `load_optimizer_state_dict`

    def setup_environment(self) -> None:
        n, tensor = self.num_nodes * self.num_processes, self._tensor_parallel_size
        assert isinstance(tensor, int)
        data = n // tensor if self._data_parallel_size == "auto" else self._data_parallel_size
        if data * tensor != n:
            raise InputError(
                f"trainer.strategy: data {data} times tensor {tensor} is not the number of processes, {n} "
                f"({self.num_nodes} nodes with {self.num_processes} devices); leave data out, and let tensor divide {n}"
            )
        self._data_parallel_size = data
        super().setup_environment()

    def shard(self, model: AutoregressiveModel) -> None:
        """Deal a model out, in place.

        Raises InputError: it cannot be.
        """
        if not is_sharded(model):
            orders = shard(model, self.device_mesh, self.is_half)
            self.orders = {NET + name: order for name, order in orders.items()}

    @property
    def is_half(self) -> bool:
        """Whether the blocks' weights are sent and used in bfloat16."""
        return "bf16" in str(self.precision_plugin.precision)

    def average(self, gradients: list[Tensor]) -> None:
        """Average gradients that every process has whole, over those that take different data."""
        mesh = self.device_mesh[DATA]
        if not gradients or mesh.size() == 1:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat, group=mesh.get_group())
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient) / mesh.size())

    @torch.no_grad()
    def whole_model(self, model: AutoregressiveModel) -> AutoregressiveModel | None:
        """A copy of a model that is dealt out, on the CPU; None but in the first process. All processes take part."""
        weights = {}
        for name, tensor in model.state_dict().items():
            complete = whole(reordered(tensor, self.orders.get(NET + name), back=True))
            if self.is_global_zero:
                weights[name] = complete.cpu()
        if not self.is_global_zero:
            return None
        with torch.random.fork_rng(devices=[]):
            copy = AutoregressiveModel(
                model.modalities, model.backbone_config, model.grammar.layout, model.grammar.context
            )
        copy.load_state_dict(weights)
        return copy

    # ------------------------------------------------------------------- checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return dict(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    @torch.no_grad()
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Raises OSError: some process could not write. All raise it, but for the last files, those of the first."""
        folder = Path(self.broadcast(str(filepath)))
        failed = None
        if self.is_global_zero:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                failed = error.errno, error.strerror
        if failed := self.broadcast(failed):
            raise OSError(*failed, str(folder))

        def described(place: Place, part: Tensor) -> Tensor:
            name, like = self._parameter_at(place)
            return reordered(spread(local(part), like), self.orders.get(name), back=True) if part.dim() else part

        checksums = write(with_tensors(checkpoint, described), folder)
        if self.is_global_zero:
            seal(folder, int(checkpoint["global_step"]), int(checkpoint["epoch"]), checksums)

    @torch.no_grad()
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A checkpoint of any number of processes, in parts or whole, as this process's parts.

        Raises InputError: it is damaged, or of another model.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        if not path.is_dir():
            return with_tensors(CheckedIO().load_checkpoint(path), self._part_of_whole)
        try:
            check(path)
        except DamagedError as error:
            raise InputError(f"{path} is damaged: {error}; name another checkpoint") from error
        return with_tensors(read(path, lambda place: self._parameter_at(place)[1]), self._part_in_order)

    def _part_of_whole(self, place: Place, tensor: Tensor) -> Tensor:
        name, like = self._parameter_at(place)
        order = self.orders.get(name)
        return part_of(tensor if order is None or not tensor.dim() else tensor[order], like) if tensor.dim() else tensor

    def _part_in_order(self, place: Place, part: Tensor) -> Tensor:
        name, like = self._parameter_at(place)
        return local(reordered(spread(part, like), self.orders.get(name))) if part.dim() else part

    def _parameter_at(self, place: Place) -> tuple[str, Tensor | None]:
        """The parameter that a tensor of a checkpoint is, or is a moment or average of; "" and None for others."""
        module, name, found = self.lightning_module, "", None
        assert module is not None
        match place:
            case ("state_dict", str(name)) | ("callbacks", _, "average", str(name)):
                found = self._named().get(name)
            case ("optimizer_states", int(number), "parts", int(part), "state", int(index), _):
                optimizer = self.optimizers[number]
                assert isinstance(optimizer, MuonAdamW)
                found = optimizer.parameters[part][index]
                name = next(name for name, own in self._named().items() if own is found)
        return name if found is not None else "", found

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Raises InputError: the checkpoint is of another model."""
        own = self._named()
        if differing := own.keys() ^ checkpoint["state_dict"].keys():
            raise InputError(
                f"the checkpoint and the model do not both have {', '.join(sorted(differing)[:5])}; go on with the "
                "configuration that it was trained with"
            )
        with torch.no_grad():
            for name, part in checkpoint["state_dict"].items():
                local(own[name]).copy_(part)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def _named(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the model, by name."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict(keep_vars=True)


StrategyRegistry.register("sharded", Sharded, description="FSDP2 over all processes")
