"""Ranks: process groups, tables sharded by a plan, optimizers, and the step over all ranks."""
