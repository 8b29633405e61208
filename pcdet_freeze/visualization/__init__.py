"""Pictures of frames seen from above: points, boxes, lanes and classes of cells. Needs the extra ``vis``."""
