"""Looks for what is valid in a request and still wrong: black images, swapped channels, frozen states."""
