"""A lock per folder: who is at work in it, gone with a killed process."""
