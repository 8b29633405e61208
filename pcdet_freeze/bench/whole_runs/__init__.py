"""Whole trainings, in processes of their own."""
