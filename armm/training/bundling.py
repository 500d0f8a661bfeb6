"""The model of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from armm import bundle
from armm.errors import InputError
from armm.model import AutoregressiveModel
from armm.training.sharded_checkpoints import Place, is_sharded_checkpoint, read

NET = "net."  # the model's place in the module that trains it


def model_of(checkpoint: Path) -> tuple[AutoregressiveModel, str]:
    """The model of a checkpoint that is whole, on the CPU, and which weights it has, in words.

    Where a moving average of the weights was kept, it has that, as in a bundle that training writes.

    Raises InputError: it is no checkpoint of ours.
    """
    if is_sharded_checkpoint(checkpoint):
        tree = read(checkpoint, like=lambda place: None, only=is_weight)
    else:
        tree = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    try:
        description, weights = tree["armm"]["model"], dict(tree["state_dict"])
    except KeyError as error:
        raise InputError(f"{checkpoint} says nothing of its model; resume the run, which writes a bundle") from error
    kind = "the latest weights"
    for state in tree["callbacks"].values():
        if isinstance(state, dict) and state.get("average"):
            if not state["lent"]:
                weights |= state["average"]
            kind = "the average of the weights"
    model = bundle.build(description, str(checkpoint))
    model.load_state_dict({name.removeprefix(NET): tensor for name, tensor in weights.items()})
    return model.eval(), kind


def is_weight(place: Place) -> bool:
    return "optimizer_states" not in place
