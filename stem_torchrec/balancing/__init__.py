"""Balancing of the tasks' gradients: where they are taken and how they are combined."""
