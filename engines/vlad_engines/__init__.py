"""From checkpoint to actions: the model, its backends and the processing around them.

Importing this package imports no torch; `vlad_engines.unified_policy` does.
"""
