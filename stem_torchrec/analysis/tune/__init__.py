"""Searches the values of config keys with which a model is best on the valid split."""
