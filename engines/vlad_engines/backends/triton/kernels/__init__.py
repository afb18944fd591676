"""Fused Triton kernels; each file holds one stage's kernels and the functions that launch them.

All of them run through Triton's interpreter as well, which is how they are tested without a GPU.
"""
