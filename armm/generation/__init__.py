"""Generation: sampling, written once on `State`."""

from armm.generation.engine import Sample, generate
from armm.generation.filters import Filter, temperature, top_k, top_p

__all__ = ["Filter", "Sample", "generate", "temperature", "top_k", "top_p"]
