"""The trainer: one run from its first batch to its last checkpoint, and what can be asked of it."""
