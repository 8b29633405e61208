"""Readers of files that may come from strangers: pickles, archives, paths; bounded, and no code runs."""
