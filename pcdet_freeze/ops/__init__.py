"""Geometry and grids: boxes, rotated IoU, NMS, voxels. No compiled extension.

Every operator gives the same answer on both kinds of machine: numba compiles the CPU path on first use
(and caches it on disk), plain torch is the CUDA path. Frame: LiDAR, x forward, y left, z up, metres;
heading in radians, counter-clockwise from x. A box is [x, y, z, dx, dy, dz, heading], centre and full sizes.

| module      | holds                                                                 |
| ----------- | --------------------------------------------------------------------- |
| `boxes.py`  | corners, periods, range masks, points in boxes, nearest axis-aligned IoU |
| `iou.py`    | rotated BEV, 3D and aligned 3D IoU                                    |
| `nms.py`    | greedy non-maximum suppression, rotated and axis-aligned              |
| `voxels.py` | point cloud -> voxels, in first-seen order                            |
| `cells.py`  | points -> cells of a map, a cell's label from those of its points      |
"""
