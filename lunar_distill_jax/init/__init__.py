"""Where a student's first parameters come from."""
