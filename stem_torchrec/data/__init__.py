"""Prepared folder -> batches: schema, reader, position."""
