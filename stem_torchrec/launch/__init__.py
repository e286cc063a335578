"""Processes: ranks that are started, signals that end them, and what they are told."""
