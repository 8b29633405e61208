"""Reading sections of a config into dataclasses: rules, faults, near names."""
