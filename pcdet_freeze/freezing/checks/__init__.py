"""Checks before and during a training. They know no trainer: any loop can call them."""
