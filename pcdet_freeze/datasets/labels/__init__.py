"""Labels of frames: files beside the points, their settings, classes that are labelled, annotations."""
