"""Pillar encoders on valid points: layers, norm statistics, maxima."""
