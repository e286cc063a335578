"""Industrial-scale training of multi-task recommenders on TorchRec."""

__version__ = "0.1.0"
