"""Reads finished runs and makes reports of them."""
