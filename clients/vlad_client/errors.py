"""Everything that this package raises on its own account.

PolicyClientError
├── PolicyConnectionError   also a ConnectionError: no connection, or it broke
├── PolicyTimeoutError      also a TimeoutError: connected or not, it took too long
├── PolicyServerError       also a RuntimeError: the server answered with an error
└── WireError               also a ValueError: a message that is not in the openpi wire format
"""

from __future__ import annotations


class PolicyClientError(Exception):
    """Base of all errors of the client."""


class PolicyConnectionError(PolicyClientError, ConnectionError):
    """The server cannot be reached, refused the connection, or the connection broke.

    Attributes:
        retryable: True where the same attempt may succeed later (a server that starts or restarts);
            False where it will not (unknown host, wrong key, another service on the port).
    """

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class PolicyTimeoutError(PolicyClientError, TimeoutError):
    """The server did not become ready, or did not answer, in the time given."""


class PolicyServerError(PolicyClientError, RuntimeError):
    """The server answered with an error instead of an action chunk.

    Attributes:
        server_message: the server's text, as it came.
    """

    def __init__(self, server_message: str) -> None:
        super().__init__("Error in inference server:\n" + server_message)
        self.server_message = server_message


class WireError(PolicyClientError, ValueError):
    """A message that is not in the openpi wire format, or that the format forbids."""
