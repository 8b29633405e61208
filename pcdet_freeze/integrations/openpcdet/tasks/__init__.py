"""Task heads of the user in an unmodified OpenPCDet: ``pcdet_freeze.openpcdet.add_task``.

``registry`` holds the tasks, ``heads`` adds their modules to a detector, ``data`` adds their labels to a data
set (``point_columns``: labels of points ride as columns of the points; ``frame_arrays``: one array a frame),
``scores`` adds their metrics to OpenPCDet's evaluation, ``replacements`` has the replaced functions.
"""
