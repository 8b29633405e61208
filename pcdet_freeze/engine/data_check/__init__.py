"""Check data before they are trained on: the command `check-data`, and a short form at each start.

expected    what config, model and pretrained checkpoint expect of the data
read        frames -> what each of them holds (``datasets.checks.frame_survey``)
boxes, points, labels, files    what does not fit: a function for each finding
report      all findings and figures, as text and as plain data
at_start    the short form, and the columns of the points in a checkpoint
"""
