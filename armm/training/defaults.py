"""What the Trainer is told unless a recipe says otherwise, whatever is trained."""

from __future__ import annotations

from typing import Any

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
