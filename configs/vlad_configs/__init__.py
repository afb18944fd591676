"""Configuration of vlad: what a robot sends, what a model is shaped like, how the daemon serves.

Frozen dataclasses only. Imports numpy and the standard library, never torch.
"""
