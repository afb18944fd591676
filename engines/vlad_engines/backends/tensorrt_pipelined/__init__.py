"""The engines of `tensorrt` in the overlapped schedule. Imports neither torch nor onnx."""
