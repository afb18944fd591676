"""Requests and replies on disk: written beside the hot path, read wherever they are of use."""
