"""Work spread over processes, each with a simulator of its own."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from typing import Callable, Iterator, Sequence, TypeVar

from vlad_libero.errors import LiberoError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Small matrices everywhere: threads of several processes would only wait for each other.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def in_processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Results as they come, in any order; items begin in order.

    Processes start afresh (no fork), since graphics and threads do not survive a copy. Where the
    caller stops early or an item fails, what has not begun never does.

    Args:
        function: of a module, with one argument; both must be picklable.
        workers: processes.

    Raises:
        LiberoError: where a process died.
        Exception: whatever `function` raises.
    """
    for name in _ONE_THREAD:
        os.environ.setdefault(name, "1")
    if not items:
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(items)), context) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise LiberoError(
                "a simulator process died; the system's log may say why (memory?). Run again to go on"
            ) from error
        finally:
            for future in futures:
                future.cancel()
