"""The report of a run: one self-contained HTML file, and the comparison of several runs.

Nothing here runs a model: :mod:`pcdet_freeze.engine.hooks.report` collects a :class:`.record.RunRecord`.
"""
