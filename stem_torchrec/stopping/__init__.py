"""What ends a process or a job in good order: signals, a lost parent, a step that hangs."""
