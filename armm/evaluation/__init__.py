"""Objective scores of trained models, by judges that are trained on real data here: no pretrained network is needed."""

from armm.evaluation.score import Material, Score, Value, evaluate

__all__ = ["Material", "Score", "Value", "evaluate"]
