"""Heads: distributions over the symbols of a unit, given its context."""

from armm.heads.categorical import Categorical, CategoricalHead
from armm.heads.causal_conv import CausalConv, CausalConvHead
from armm.heads.distributions import Distribution, DistributionConfig, LogisticMixture, Softmax
from armm.heads.head import Choose, Head, HeadConfig, HeadState, Unit

__all__ = [
    "Categorical",
    "CategoricalHead",
    "CausalConv",
    "CausalConvHead",
    "Choose",
    "Distribution",
    "DistributionConfig",
    "Head",
    "HeadConfig",
    "HeadState",
    "LogisticMixture",
    "Softmax",
    "Unit",
]
