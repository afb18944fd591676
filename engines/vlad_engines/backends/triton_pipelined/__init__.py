"""The kernels of `triton` in the overlapped schedule."""
