"""Recorded requests, computed again by any backend."""
