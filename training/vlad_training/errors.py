"""What training refuses."""

from __future__ import annotations

from vlad_configs.errors import VladError


class DatasetError(VladError):
    """A dataset that cannot be read as asked; the text names the file and what was expected there."""


class TrainingError(VladError):
    """Training that cannot go on, such as a loss that is no number."""
