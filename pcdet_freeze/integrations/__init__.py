"""The same freeze inside other packages."""
