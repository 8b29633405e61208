"""From the entries of the freeze list to modules of a model."""
