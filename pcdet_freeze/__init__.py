"""pcdet_freeze: train one LiDAR task without touching the others."""

__version__ = "0.1.0"
