"""Operators on boxes, grids and sparse tensors, without a compiled extension.

Every operator gives the same result on CPU and CUDA. The CPU path is compiled by numba on first use and
cached on disk; the CUDA path is plain torch. LiDAR frame: x forward, y left, z up, metres; heading in
radians, counter-clockwise from x. A box is [x, y, z, dx, dy, dz, heading]: centre and full sizes.

| module | content |
| --- | --- |
| `boxes.py` | corners, periods, range masks, points in boxes, nearest axis-aligned IoU |
| `iou.py` | rotated BEV, 3D and aligned 3D IoU (`_rotated_overlap*.py`: the area of the intersection) |
| `nms.py` | greedy non-maximum suppression, rotated and axis-aligned |
| `voxels.py` | point cloud -> voxels, in order of their first point |
| `sparse.py` | sparse 3D convolutions; the only file that imports spconv |
| `norm.py` | batch norm for very small sparse batches |
| `pillars/` | pillar encoders on valid points only |
| `maps/` | channels-last BEV maps: norm layers, matrix products, one map that several layers write |
| `compiled.py` | numba functions whose machine code is kept on disk |
| `bev_cells.py` | points -> cells of a BEV map, majority label of a cell |
| `lanes.py` | lane maps <-> polylines |
| `batch_tensors.py` | arrays of a batch -> tensors |
"""
