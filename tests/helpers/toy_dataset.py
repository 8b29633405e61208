"""A data set of ten frames in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from pcdet_freeze.datasets import DatasetTemplate
from pcdet_freeze.errors import DataError


class ToyDataset(DatasetTemplate):
    """Ten frames of ten points; those in ``bad`` cannot be read, those in ``empty`` hold nothing to learn."""

    bad: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()

    def __len__(self) -> int:
        return 10

    def load_sample(self, index: int) -> dict[str, Any]:
        if index in self.bad:
            raise DataError(f"frame {index} is broken")
        points = np.full((10, 4), index + 1, np.float32)
        points[:, 1] = np.arange(10) - 4.5
        boxes = np.array([[5, 0, 0, 4, 2, 1.5, 0.1], [5, 4, 0, 4, 2, 1.5, 0.1]], np.float32)
        names = np.array(["Van", "Car"])
        keep = slice(0, 1) if index in self.empty else slice(0, 2)
        sample = {"points": points, "frame_id": str(index), "gt_boxes": boxes[keep], "gt_names": names[keep],
                "point_labels": np.arange(10), "lane_map": np.full((4, 4), index, np.uint8)}  # fmt: skip
        if index in self.empty:
            del sample["point_labels"], sample["lane_map"]
        return sample
