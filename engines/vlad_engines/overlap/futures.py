"""Futures of futures."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Source = TypeVar("Source")
Target = TypeVar("Target")


def mapped(source: Future[Source], convert: Callable[[Source], Target]) -> Future[Target]:
    """A future of `convert` of the result of `source`. Errors of either go into it.

    `convert` runs in the thread that completes `source`, so it must be quick.
    """
    target: Future[Target] = Future()
    target.set_running_or_notify_cancel()

    def complete(done: Future[Source]) -> None:
        try:
            target.set_result(convert(done.result()))
        except Exception as error:
            target.set_exception(error)

    source.add_done_callback(complete)
    return target
