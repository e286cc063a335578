"""The models by name. Adding one is a file, a line here and a test file.

A model is a module with ``owners`` (which tables it needs, see ``embeddings.py``) and
``forward(pooled, dense) -> logits (B, T)``.
"""

from stem_torchrec.models.stem_net import StemNet

MODELS = {"stem_net": StemNet}
