"""Backbones: what turns past units into a context for the next one."""

from armm.backbones.backbone import Backbone, BackboneConfig, BackboneState
from armm.backbones.none import NoBackbone
from armm.backbones.recycled import Recycle
from armm.backbones.transformer import Transformer, TransformerBackbone

__all__ = ["Backbone", "BackboneConfig", "BackboneState", "NoBackbone", "Recycle", "Transformer", "TransformerBackbone"]
