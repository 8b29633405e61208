"""What commands share: flags, exit codes, signals, JSON files, progress."""
