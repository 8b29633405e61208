"""Signals: those that ask a run to stop, and SIGINT while a compiled function runs."""
