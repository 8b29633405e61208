"""Which module feeds which: skipped modules, drifting outputs, the shortest list."""
