"""What can go wrong around the simulator.

LiberoError
    SimulatorMissingError
    ResultsError
    DatasetError
"""

from __future__ import annotations


class LiberoError(Exception):
    """Base of this package's errors; the text is one line for people."""


class SimulatorMissingError(LiberoError):
    """The simulator, a part of it or its assets are not installed."""


class ResultsError(LiberoError):
    """A file of results cannot be used: damaged, of another protocol, or not comparable."""


class DatasetError(LiberoError):
    """A dataset directory cannot be written or continued."""
