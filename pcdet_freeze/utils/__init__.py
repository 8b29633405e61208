"""Utilities that know nothing of freezing: process groups, random state, tensors, memory, pickles, names."""
