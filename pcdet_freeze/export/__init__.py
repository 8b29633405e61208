"""Networks as ONNX files: from voxels to the raw outputs of the heads."""
