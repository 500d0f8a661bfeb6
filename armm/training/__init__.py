"""Training through Lightning: one module and one data module for everything."""

from armm.training.callbacks import Recorder, SampleLogger
from armm.training.data import DataModule
from armm.training.module import GenerativeModule
from armm.training.optim import Optimization

__all__ = ["DataModule", "GenerativeModule", "Optimization", "Recorder", "SampleLogger"]
