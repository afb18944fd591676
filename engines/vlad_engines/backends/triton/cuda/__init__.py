"""CUDA C++ for what Triton cannot express, compiled by NVRTC when a backend starts.

The compiler and the driver are reached through `cuda.bindings`, which PyTorch for CUDA brings along.
"""
