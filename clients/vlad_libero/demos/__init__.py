"""Demonstrations of the scripted expert, in bulk."""
