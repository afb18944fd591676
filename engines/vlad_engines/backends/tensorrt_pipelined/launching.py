"""Whether enqueueing a denoising holds up the thread that does it, found out by trying."""

from __future__ import annotations

import time

from vlad_engines.backends.tensorrt_pipelined.device_order import DeviceOrder
from vlad_engines.backends.tensorrt_pipelined.lane import Batch, TensorRtLane

_TRIAL = -2
"""Request id of the trial. Pipelines count their requests from zero."""

_LEAST_SHARE = 0.25


def holds_up(order: DeviceOrder, lane: TensorRtLane, batch: Batch) -> bool:
    """Enqueue a denoising when its prefix has ended, and another one while it runs, and compare.

    Engines of thousands of kernels, as low builder levels make them, do not fit into the driver's queue: then
    the second takes as much longer as the prefix needs. Nothing may be in flight; counts as no call.

    Returns:
        True where the second took longer by a quarter of the time of vision and prefix, or more.
    """
    counted = lane.calls
    lane.prepare(batch)
    began = _front(order, lane, batch)
    front_s = time.perf_counter() - began
    behind_nothing = _denoise(order, lane)
    _front(order, lane, batch, wait=False)
    behind_prefix = _denoise(order, lane)
    lane.calls = counted
    return behind_prefix - behind_nothing > _LEAST_SHARE * front_s


def _front(order: DeviceOrder, lane: TensorRtLane, batch: Batch, *, wait: bool = True) -> float:
    """When vision and prefix were begun."""
    lane.load(_TRIAL, batch)
    began = time.perf_counter()
    lane.vision(_TRIAL, order.front)
    lane.prefix(_TRIAL, order.front)
    ended = order.event()
    order.record(ended, order.front)
    order.wait(order.back, ended)
    if wait:
        order.synchronize(ended)
    return began


def _denoise(order: DeviceOrder, lane: TensorRtLane) -> float:
    """Seconds of the host until denoising was enqueued; returns when it has run."""
    began = time.perf_counter()
    lane.denoise(_TRIAL, order.back)
    seconds = time.perf_counter() - began
    ended = order.event()
    order.record(ended, order.back)
    order.synchronize(ended)
    return seconds
