"""Eager PyTorch, on CPU or CUDA: the reference network behind the component cut."""
