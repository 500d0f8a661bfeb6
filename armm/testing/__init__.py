"""The laws of the library as checks that anyone can run, on models and on modalities of their own."""

from armm.testing.law import LawBroken
from armm.testing.likelihood import check_causal, check_normalised, check_views_agree
from armm.testing.models import randomised, tiny_model
from armm.testing.plugin import Verdict, check_class_path, check_modality, run_checks
from armm.testing.round_trip import check_round_trip
from armm.testing.sampling import check_same_sample, check_sampler
from armm.testing.streams import random_document

__all__ = [
    "LawBroken",
    "Verdict",
    "check_causal",
    "check_class_path",
    "check_modality",
    "check_normalised",
    "check_round_trip",
    "check_same_sample",
    "check_sampler",
    "check_views_agree",
    "random_document",
    "randomised",
    "run_checks",
    "tiny_model",
]
