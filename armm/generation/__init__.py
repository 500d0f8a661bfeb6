"""Generation: sampling, written once on `State`."""

from armm.generation.constraints import JsonSchema, Lark, Regex
from armm.generation.content import Allowed, Banned, FrequencyPenalty, LogitBias, PresencePenalty, RepetitionPenalty
from armm.generation.filter import Filter
from armm.generation.filters import MinP, Temperature, TopK, TopP, Typical
from armm.generation.proposers import Draft, FixedPoint, Hold, NGram, Proposer, UnitAbove
from armm.generation.sampling import Sample, generate
from armm.generation.search import beam_search, best_of, self_consistency
from armm.generation.streaming import Piece, stream
from armm.generation.turns import converse

__all__ = [
    "Allowed",
    "Banned",
    "Draft",
    "Filter",
    "FixedPoint",
    "FrequencyPenalty",
    "Hold",
    "JsonSchema",
    "Lark",
    "LogitBias",
    "MinP",
    "NGram",
    "Piece",
    "PresencePenalty",
    "Proposer",
    "Regex",
    "RepetitionPenalty",
    "Sample",
    "Temperature",
    "TopK",
    "TopP",
    "Typical",
    "UnitAbove",
    "beam_search",
    "best_of",
    "converse",
    "generate",
    "self_consistency",
    "stream",
]
