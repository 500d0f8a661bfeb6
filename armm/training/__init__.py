"""Training through Lightning: one module and one data module for everything."""

from armm.training.callbacks import Recorder, SampleLogger
from armm.training.corruption import Corruption, FrameDropout, Jitter, ScheduledSampling, TokenDropout
from armm.training.data import DataModule
from armm.training.guard import Guard
from armm.training.module import GenerativeModule
from armm.training.optim import Optimization
from armm.training.parallel import Sharded
from armm.training.saving import Checkpointing, Checkpoints

__all__ = [
    "Checkpointing",
    "Checkpoints",
    "Corruption",
    "DataModule",
    "FrameDropout",
    "GenerativeModule",
    "Guard",
    "Jitter",
    "Optimization",
    "Recorder",
    "SampleLogger",
    "ScheduledSampling",
    "Sharded",
    "TokenDropout",
]
