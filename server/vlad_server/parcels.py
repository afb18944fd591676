"""Requests in the memory that the server shares with its workers, from their arrival to their outcome."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Mapping
from typing import Any

from vlad_engines.worker_protocol import SharedSlots
from vlad_server.outcomes import Outcome


@dataclasses.dataclass(eq=False)
class Work:
    """A request on its way to a worker.

    Attributes:
        observation: checked and reduced to the keys that the policy uses.
        on_done: told the outcome on the event loop, once, unless the request is dropped.
        continuable: True where the reply shall hold what a continuation needs.
    """

    observation: Mapping[str, Any]
    on_done: Callable[[Outcome], None]
    continuable: bool = False


@dataclasses.dataclass(eq=False, slots=True)
class Parcel:
    """A request that any worker can compute.

    Attributes:
        slot: where its arrays lie.
        outline: of its observation, for `worker_protocol.Infer`.
        on_done, continuable: see `Work`.
    """

    slot: int
    outline: bytes
    on_done: Callable[[Outcome], None]
    continuable: bool


class ParcelStore:
    """Packs requests as they come, while their bytes are still in the processor's cache.

    Args:
        count: how many requests may be there at once.
        request_bytes: largest request in bytes.
    """

    def __init__(self, count: int, request_bytes: int) -> None:
        self.slots = SharedSlots.create(count, request_bytes)
        # The lowest free one is taken first, so that no more memory is touched than is needed.
        self._free = list(range(count))

    def close(self) -> None:
        """Give the shared memory back, once no worker uses it any more."""
        self.slots.close()

    def pack(self, work: Work) -> Parcel:
        """Copy a request's arrays into a slot.

        Raises:
            ValueError: where they do not fit, or where too much of it is not arrays.
            TypeError, OverflowError: for values that cannot be handed over.
        """
        slot = heapq.heappop(self._free)
        try:
            outline = self.slots.store_observation(slot, work.observation)
        except BaseException:
            heapq.heappush(self._free, slot)
            raise
        return Parcel(slot, outline, work.on_done, work.continuable)

    def free(self, parcel: Parcel) -> None:
        """Forget a request; no worker may have it any more."""
        self.slots.release(parcel.slot)
        heapq.heappush(self._free, parcel.slot)
