"""Backbones on the bird's-eye-view map."""

from pcdet_freeze.models.backbones_2d.base_bev_backbone import BaseBEVBackbone

__all__ = ["BaseBEVBackbone"]
