# ruff: noqa: E501
"""Random frames: each a pure function of its index."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from .scans import ScanDataset

POINTS = 12


class DatasetTemplate(Dataset):
    def __init__(self, dataset_cfg=None, class_names=None, training=True, root_path=None, logger=None):
        self.dataset_cfg, self.class_names, self.training = dataset_cfg, class_names, training
        self.root_path = Path(root_path or dataset_cfg.DATA_PATH)
        self.logger = logger


class ToyDataset(DatasetTemplate):
    def __init__(self, dataset_cfg=None, class_names=None, training=True, root_path=None, logger=None):
        super().__init__(dataset_cfg, class_names, training, root_path, logger)
        with open(self.root_path / "frames.txt") as file:
            self.length = int(file.read())

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        draw = np.random.RandomState(index)
        boxes = draw.randn(3, 4).astype(np.float32)
        return {"points": draw.randn(POINTS, 4).astype(np.float32), "gt_boxes": boxes, "frame_id": str(index)}

    @staticmethod
    def collate_batch(batch_list):
        batch = {key: np.stack([sample[key] for sample in batch_list]) for key in batch_list[0]}
        return {**batch, "batch_size": len(batch_list)}


def build_dataloader(dataset_cfg, class_names, batch_size, dist, root_path=None, workers=4, seed=None,
                     logger=None, training=True, merge_all_iters_to_one_epoch=False, total_epochs=0):  # fmt: skip
    kinds = {kind.__name__: kind for kind in (ToyDataset, ScanDataset)}
    dataset = kinds[dataset_cfg.DATASET](dataset_cfg, class_names, training, root_path, logger)
    sampler = DistributedSampler(dataset, shuffle=training) if dist else None
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(
        dataset, batch_size, shuffle=sampler is None and training, sampler=sampler, num_workers=workers,
        collate_fn=dataset.collate_batch, generator=order,
    )  # fmt: skip
    return dataset, loader, sampler
