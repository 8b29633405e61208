"""Hooks of the training loop, one class a job; the trainer calls them in list order."""
