"""Closed-loop success of a served policy, with its uncertainty."""
