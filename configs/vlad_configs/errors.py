"""The errors that cross a border of vlad.

VladError
├── ConfigError         an option or a combination of options that cannot work
├── CheckpointError     a checkpoint that cannot be loaded as asked
├── ObservationError    a request that does not fit the environment: the client's mistake
└── EngineError         the engine failed on a valid request: our mistake
"""

from __future__ import annotations


class VladError(Exception):
    """Base of every error that vlad raises on purpose."""


class ConfigError(VladError):
    """An option or a combination of options that cannot work; the text says what to do instead."""


class CheckpointError(VladError):
    """A checkpoint that cannot be loaded as asked; the text lists what is missing or odd."""


class ObservationError(VladError):
    """A request that does not fit the environment.

    Args:
        key: the key of the request at fault, nested keys joined with a slash.
        expected: what the environment wants there.
        received: what came.
    """

    def __init__(self, key: str, expected: str, received: str) -> None:
        super().__init__(f"invalid observation: key '{key}': expected {expected}, received {received}")
        self.key = key
        self.expected = expected
        self.received = received


class EngineError(VladError):
    """The engine failed on a valid request."""
