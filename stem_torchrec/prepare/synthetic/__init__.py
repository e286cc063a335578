"""Seeded data of a world whose truth is known."""
