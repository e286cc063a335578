"""Trains models and balancing rules side by side and reports on them."""
