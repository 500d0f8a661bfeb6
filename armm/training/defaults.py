"""What the Trainer is told unless a recipe says otherwise, whatever is trained, and what it may not be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from armm.errors import InputError

TRAINER: dict[str, Any] = {
    "max_steps": 1000,
    "max_epochs": -1,
    "gradient_clip_val": 1.0,
    "check_val_every_n_epoch": None,
    "val_check_interval": 250,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # data.train_dataloader deals the training data out itself
}

LEAST = {"log_every_n_steps": 1, "accumulate_grad_batches": 1, "val_check_interval": 0, "gradient_clip_val": 0}


def check_trainer(keys: Mapping[str, Any]) -> None:
    """Raises InputError: a number that Lightning takes, and then divides by or climbs the loss with."""
    for key, least in LEAST.items():
        value = keys[key]
        if not isinstance(value, int | float):
            continue
        if not least <= value < math.inf or (key == "val_check_interval" and not value):
            expected = "more than 0" if key == "val_check_interval" else f"at least {least}"
            raise InputError(f"trainer.{key} is {value}, expected a number of {expected}")
