"""OPTIMIZATION: optimizer, learning-rate schedule, optimizer state by parameter name."""
