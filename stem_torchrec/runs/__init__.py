"""The run folder: its files, its records, the schema of what was trained, and who continues it."""
