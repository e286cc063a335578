"""From a run to predictions: files of them, and a folder that needs no TorchRec."""

from stem_torchrec.serving.predictor import Predictor

__all__ = ["Predictor"]
