"""TensorRT engines, one per component.

What runs a robot imports neither torch nor onnx; only `checkpoint_graphs`, which makes engines from a
checkpoint, does.
"""
