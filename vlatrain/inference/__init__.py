"""Scoring a finished run again, and asking it."""

from vlatrain.inference.evaluate import evaluate_run
from vlatrain.inference.predict import predict
from vlatrain.inference.predictor import Hit, Predictor

__all__ = ["Hit", "Predictor", "evaluate_run", "predict"]
