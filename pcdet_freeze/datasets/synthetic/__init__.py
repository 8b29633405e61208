"""The synthetic data set: simulated street scenes, ray-cast with a spinning multi-beam LiDAR.

```
scene.draw_scene(seed, index)   a street, houses, cars, people, clutter, plants  (road, objects, occupancy)
render.render(scene, sensor)    rays -> first hits (raycast) -> noisy returns (lidar_returns) -> Frame
dataset.SyntheticDataset        frames -> samples and annotations                (settings, cache)
```
"""

from pcdet_freeze.datasets.synthetic.dataset import SyntheticDataset
from pcdet_freeze.datasets.synthetic.labels import CLASSES, LABEL
from pcdet_freeze.datasets.synthetic.render import Frame

__all__ = ["CLASSES", "LABEL", "Frame", "SyntheticDataset"]
