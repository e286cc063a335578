"""What the trainer's loop is made of: where it is, what it records, evaluates and saves."""
