"""An export over HTTP: the Open Inference Protocol, and rows as JSON. Needs the extra ``serve``."""
