"""Checks before and during a training. They do not depend on the trainer: any loop can call them."""
