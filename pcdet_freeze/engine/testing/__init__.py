"""Evaluation of a model over a data set: predictions, files, metrics, digests of the outputs."""
