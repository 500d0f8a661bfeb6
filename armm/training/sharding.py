"""A model dealt out over processes: heads and hidden features (tensor parallelism), then all weights (FSDP2).

Megatron-LM (arXiv:1909.08053): the first matrix of attention and of the MLP is cut by its outputs, the second by its
inputs, so that a block sends its result twice and nothing else. FSDP2 (arXiv:2304.11277 and torch.distributed.fsdp):
every process keeps a part of each weight, and a block's weights are whole while it computes.
Where a weight is made of several matrices, such as those of queries, keys and values, its rows are put in an order in
which every process has its own of each.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from armm.backbones.transformer import Block, Transformer
from armm.errors import InputError
from armm.model import AutoregressiveModel
from armm.training.layout import part_of, spread, whole

DATA, TENSOR = "data_parallel", "tensor_parallel"  # as Lightning names the dimensions of its mesh

HALF = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)

Orders = dict[str, Tensor]
"""(rows,) by name of a parameter: which row of the model's own order stands where."""


def check_dealable(model: AutoregressiveModel, n: int) -> None:
    """Raises InputError: the backbone's heads and hidden features cannot be dealt out to n processes."""
    if n == 1:
        return
    config = model.backbone_config
    if not isinstance(config, Transformer):
        raise InputError(f"tensor: {n} deals out the heads of a transformer, the backbone has none; set tensor to 1")
    for what, number in (("n_heads", config.n_heads), ("n_kv_heads", config.kv_heads), ("mlp_width", config.hidden)):
        if number % n:
            raise InputError(f"tensor is {n}, but model.backbone's {what} is {number}; give a divisor of it")


def shard(model: AutoregressiveModel, mesh: DeviceMesh, half: bool) -> Orders:
    """Deal a model out over a mesh of (data, tensor) processes, in place; once.

    All processes take the weights of the first.

    Args:
        half: the blocks' weights are sent and used in bfloat16, for products that are made in it anyway. Gradients are
            added up, and weights kept, in float32.

    Raises InputError: it cannot be dealt out so.
    """
    check_dealable(model, mesh[TENSOR].size())
    share_weights(model, torch.device(mesh.device_type))
    orders = cut(model, mesh[TENSOR]) if mesh[TENSOR].size() > 1 else {}
    if mesh[DATA].size() > 1 or not orders:
        # a number has no parts
        numbers = {parameter for parameter in model.parameters() if not parameter.dim()}
        for block in blocks_of(model):
            fully_shard(
                block, mesh=mesh[DATA], ignored_params=numbers, mp_policy=HALF if half else MixedPrecisionPolicy()
            )
        fully_shard(model, mesh=mesh[DATA], ignored_params=numbers)
        register_fsdp_forward_method(model, "log_prob")
    return orders


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule) or any(isinstance(parameter, DTensor) for parameter in model.parameters())


def blocks_of(model: AutoregressiveModel) -> list[Block]:
    return [module for module in model.backbone.modules() if isinstance(module, Block)]


@torch.no_grad()
def share_weights(model: nn.Module, device: torch.device) -> None:
    """Give all processes the weights of the first."""
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    for tensor in (*model.parameters(), *model.buffers()):
        sent = tensor.detach().to(device)
        distributed.broadcast(sent, 0)
        tensor.copy_(sent)


# -------------------------------------------------------------------------- tensor parallelism


def cut(model: AutoregressiveModel, mesh: DeviceMesh) -> Orders:
    """Deal out the heads and hidden features of every block."""
    n = mesh.size()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    orders: Orders = {}
    for block in blocks_of(model):
        attention, c = block.attention, block.attention.config
        size = c.kv_heads * c.head_width
        for linear, parts in ((attention.qkv, [c.width, size, size]), (block.mlp.enter, parts_of(block))):
            order = dealt_rows(parts, n)
            for parameter in linear.parameters():
                parameter.data = parameter.data[order.to(parameter.device)]
                orders[names[id(parameter)]] = order
        attention.n_heads, attention.n_kv_heads = c.n_heads // n, c.kv_heads // n
        attention.share = Share(mesh)
        plan = {
            "attention.qkv": ColwiseParallel(),
            "attention.out": RowwiseParallel(),
            "mlp.enter": ColwiseParallel(),
            "mlp.out": RowwiseParallel(),
        }
        parallelize_module(block, mesh, plan, src_data_rank=None)
    return orders


def parts_of(block: Block) -> list[int]:
    """Rows of each matrix that the MLP's first is made of."""
    hidden = block.attention.config.hidden
    return [hidden, hidden] if block.mlp.activation == "swiglu" else [hidden]


def dealt_rows(sizes: list[int], n: int) -> Tensor:
    """An order of the rows of several matrices, one below the other, in which each of n processes has an equal share
    of each of them."""
    rows = torch.arange(sum(sizes)).split(sizes)
    return torch.cat([part.chunk(n)[rank] for rank in range(n) for part in rows])


class Share:
    """Takes a process's heads of value embeddings; their scale's gradient is the sum over all processes."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh

    def __call__(self, values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        everywhere = [Replicate()]
        dealt = DTensor.from_local(values, self.mesh, everywhere, run_check=False).redistribute(placements=[Shard(-1)])
        number = DTensor.from_local(scale, self.mesh, everywhere, run_check=False)
        return dealt.to_local(), number.to_local(grad_placements=[Partial()])


def reordered(tensor: Tensor, order: Tensor | None, back: bool = False) -> Tensor:
    """A tensor with its rows in another order, laid out as it was. All processes take part.

    back: from that order to the model's own.
    """
    if order is None:
        return tensor
    order = order.to(tensor.device)
    rows = whole(tensor)[order.argsort() if back else order]
    return spread(part_of(rows, tensor), tensor)
