"""Ranks: process group, sharding plan, sharded model, train pipeline."""
