"""Heads: distributions over the symbols of a unit, given its context."""

from armm.heads.categorical import Categorical, CategoricalHead
from armm.heads.causal_conv import CausalConv, CausalConvHead
from armm.heads.copying import Copying
from armm.heads.distributions import Distribution, DistributionConfig, JointSoftmax, LogisticMixture, Softmax
from armm.heads.head import Choose, Head, HeadConfig, HeadState, Unit
from armm.heads.pixel_cnn import GatedPixelCNN, PixelCNN
from armm.heads.pixel_rnn import DiagonalBiLSTM, RowLSTM

__all__ = [
    "Categorical",
    "CategoricalHead",
    "CausalConv",
    "CausalConvHead",
    "Choose",
    "Copying",
    "DiagonalBiLSTM",
    "Distribution",
    "DistributionConfig",
    "GatedPixelCNN",
    "Head",
    "HeadConfig",
    "HeadState",
    "JointSoftmax",
    "LogisticMixture",
    "PixelCNN",
    "RowLSTM",
    "Softmax",
    "Unit",
]
