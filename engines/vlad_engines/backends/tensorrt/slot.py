"""The device memory of a batch of requests in flight, and its page-locked host ends.

Buffers are made once, for the largest batch; a smaller one fills their beginnings. Addresses never change,
so engines and recorded graphs can hold on to them: the prefix writes K and V where denoise reads them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import EngineError
from vlad_configs.models import CAMERA_SLOTS, ModelConfig
from vlad_engines.backends.chunks import Chunks, pruned_tokens
from vlad_engines.backends.tensorrt.device import Device, HostArray, Memory, Stream
from vlad_engines.export.spec import COMPONENTS, ITEM_BYTES, Dtype, GraphForm, ShapeKey, graph_spec
from vlad_engines.processing.model_inputs import ModelInputs

Array = npt.NDArray[np.float32]

_ALIGNMENT = 256
_HOST_DTYPES: dict[str, np.dtype[Any]] = {
    "pixels": np.dtype(np.float32),
    "prompt_tokens": np.dtype(np.int32),
    "prefix_lengths": np.dtype(np.int32),
    "state": np.dtype(np.float32),
    "x_t": np.dtype(np.float32),
}
"""What a request brings along."""


class Slot:
    """Memory for one batch.

    `x_t` after every step lies one after the other: the noise first, the actions last. The step engine
    reads one and writes the next.

    Args:
        keys: the shapes that it must be able to hold.
    """

    def __init__(
        self, device: Device, config: ModelConfig, form: GraphForm, keys: Sequence[ShapeKey], stream: Stream
    ) -> None:
        self._device = device
        self._config = config
        self._form = form
        self._key: ShapeKey | None = None
        self._request_id: int | None = None
        self._image_tokens = config.siglip.num_tokens
        self._shapes = {key: _shapes(config, form, key) for key in keys}
        self._host = {
            name: device.host_array(shape, _HOST_DTYPES[name])
            for name, shape in self._largest().items()
            if name in _HOST_DTYPES
        }
        actions = (max(key.batch for key in keys), config.action_horizon, config.action_dim)
        self._host_actions = device.host_array(actions, np.dtype(np.float32))
        self._host_selected = device.host_array((actions[0], 2), np.dtype(np.int32))
        self._memory, self._addresses = self._allocate()
        counted = {"step": form.num_steps}
        if form.pruning is not None:
            counted["slots"] = self._largest()["slots"][0]
        self._numbers = {  # alive until the copies are done
            name: device.host_array((count,), np.dtype(np.int32)) for name, count in counted.items()
        }
        for name, numbers in self._numbers.items():
            numbers[:] = np.arange(len(numbers))
            device.upload(self._addresses[name], numbers, stream)

    # ---- requests ----

    def load(
        self,
        request_id: int,
        key: ShapeKey,
        inputs: Sequence[ModelInputs],
        noise: Sequence[Array],
        stream: Stream,
    ) -> None:
        """Take over a batch and enqueue its upload. The caller's arrays are free again on return.

        Args:
            inputs: `key.batch` requests that fit `key` and the model.
            noise: `[H, A]` for each.
        """
        self._request_id, self._key = request_id, key
        views = {name: self._view(name) for name in self._host}
        for index, (sample, sample_noise) in enumerate(zip(inputs, noise, strict=True)):
            count = int(np.count_nonzero(sample.token_mask))
            first = index * key.cameras
            _write_pixels(views["pixels"][first : first + key.cameras], sample.images)
            views["prompt_tokens"][index, :count] = sample.tokens[:count]
            views["prompt_tokens"][index, count:] = 0
            views["prefix_lengths"][index] = key.cameras * self._image_tokens + count
            views["x_t"][index] = sample_noise
            if "state" in views:
                views["state"][index] = sample.state
        for name, view in views.items():
            self._device.upload(self._addresses[name], view, stream)

    def require(self, request_id: int) -> ShapeKey:
        """Assert, at the beginning of every stage, whose data this is; returns its shape.

        Raises:
            EngineError: where the slot holds another request.
        """
        if self._request_id != request_id or self._key is None:
            raise EngineError(f"slot holds request {self._request_id}, a stage expected request {request_id}")
        return self._key

    def enqueue_download(self, stream: Stream) -> None:
        """Start copying the actions to the host, and what pruning selected."""
        key = self._require_key()
        self._device.download(
            self._host_actions[: key.batch], self.x_address(key, self._form.num_steps), stream
        )
        if self._form.pruning is not None:
            self._device.download(self._host_selected[: key.batch], self._addresses["selected"], stream)

    def take(self) -> Chunks:
        """A copy of what was downloaded; the device must have finished by then."""
        key = self._require_key()
        actions: Array = self._host_actions[: key.batch].copy()
        if self._form.pruning is None:
            return Chunks(actions)
        return Chunks(
            actions, pruned_tokens(key.cameras * self._image_tokens, self._host_selected[: key.batch])
        )

    # ---- addresses ----

    def address(self, tensor: str) -> int:
        """Where a tensor of `spec` lies; for `x_t` and its kin see `x_address`."""
        return self._addresses[tensor]

    def x_address(self, key: ShapeKey, step: int) -> int:
        """Where x_t lies after `step` steps: 0 is the noise, N the actions."""
        actions = key.batch * self._config.action_horizon * self._config.action_dim
        return self._addresses["x_t"] + step * actions * ITEM_BYTES["float32"]

    def step_address(self, step: int) -> int:
        """Where the number of a step lies."""
        return self._addresses["step"] + step * ITEM_BYTES["int32"]

    def read(self, address: int, shape: tuple[int, ...], dtype: Dtype, stream: Stream) -> HostArray:
        """Copy something out for inspection, as bytes of `dtype`; waits for the device."""
        count = math.prod(shape)
        array = self._device.host_array((count * ITEM_BYTES[dtype],), np.dtype(np.uint8))
        self._device.download(array, address, stream)
        done = self._device.create_event()
        done.record(stream)
        done.synchronize()
        return array

    # ---- inside ----

    def _require_key(self) -> ShapeKey:
        if self._key is None:
            raise EngineError("slot holds no request")
        return self._key

    def _view(self, name: str) -> HostArray:
        """The beginning of a host buffer, in the shape of the present key."""
        shape = self._shapes[self._require_key()][name]
        view: HostArray = self._host[name].reshape(-1)[: math.prod(shape)].reshape(shape)
        return view

    def _largest(self) -> dict[str, tuple[int, ...]]:
        largest: dict[str, tuple[int, ...]] = {}
        for shapes in self._shapes.values():
            for name, shape in shapes.items():
                if name not in largest or math.prod(shape) > math.prod(largest[name]):
                    largest[name] = shape
        return largest

    def _allocate(self) -> tuple[Memory, dict[str, int]]:
        config, form = self._config, self._form
        dtypes = {
            tensor.name: tensor.dtype
            for component in COMPONENTS
            for spec in (graph_spec(component, config, form),)
            for tensor in (*spec.inputs, *spec.outputs)
        }
        sizes = {name: math.prod(shape) * ITEM_BYTES[dtypes[name]] for name, shape in self._largest().items()}
        sizes["x_t"] *= form.num_steps + 1
        sizes["step"] = form.num_steps * ITEM_BYTES["int32"]
        offsets, total = {}, 0
        for name, size in sizes.items():
            if name in ("x_next", "x_path"):
                continue
            offsets[name] = total
            total += size + -size % _ALIGNMENT
        memory = self._device.allocate(total)
        return memory, {name: memory.address + offset for name, offset in offsets.items()}


def choose_key(
    config: ModelConfig, keys: Sequence[ShapeKey], inputs: Sequence[ModelInputs], noise: Sequence[Array]
) -> ShapeKey:
    """The smallest shape that a batch fits.

    Raises:
        EngineError: for requests that do not fit the model or any shape, with the shapes that there are.
    """
    for sample, sample_noise in zip(inputs, noise, strict=True):
        _check(config, sample, sample_noise)
    cameras = {len(sample.cameras) for sample in inputs}
    longest = max((int(np.count_nonzero(sample.token_mask)) for sample in inputs), default=0)
    fitting = [
        key for key in keys if key.batch == len(inputs) and {key.cameras} == cameras and key.prompt >= longest
    ]
    if not fitting:
        shapes = "; ".join(str(key) for key in sorted(keys))
        raise EngineError(
            f"no engine for batch {len(inputs)}, {sorted(cameras)} cameras, prompts of {longest} tokens; "
            f"there are: {shapes}"
        )
    return min(fitting)


def _check(config: ModelConfig, inputs: ModelInputs, noise: Array) -> None:
    size, cameras, length = config.siglip.image_size, len(inputs.cameras), len(inputs.tokens)
    order = [CAMERA_SLOTS.index(camera) for camera in inputs.cameras if camera in CAMERA_SLOTS]
    if len(order) != cameras or order != sorted(set(order)):
        raise EngineError(f"cameras must be some of {CAMERA_SLOTS} in this order, not {inputs.cameras}")
    _check_array("images", inputs.images, (cameras, size, size, 3), ("uint8", "float32"))
    _check_array("tokens", inputs.tokens, (length,), ("int64", "int32"))
    _check_array("token_mask", inputs.token_mask, (length,), ("bool",))
    real = int(np.count_nonzero(inputs.token_mask))
    if not inputs.token_mask[:real].all():
        raise EngineError("token_mask must begin with the real tokens; there is a gap in it")
    if real and not 0 <= inputs.tokens[:real].min() <= inputs.tokens[:real].max() < config.vocab_size:
        raise EngineError(f"prompt tokens must lie in 0..{config.vocab_size - 1}: {inputs.tokens[:real]}")
    _check_array("state", inputs.state, (config.action_dim,), ("float64", "float32"))
    _check_array("noise", noise, (config.action_horizon, config.action_dim), ("float32",))
    if inputs.guidance is not None:
        raise EngineError("backend 'tensorrt' cannot continue earlier chunks")


def _check_array(name: str, array: npt.NDArray[Any], shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    if array.shape != shape or array.dtype.name not in dtypes:
        raise EngineError(
            f"{name} must be {' or '.join(dtypes)} of shape {shape}, not {array.dtype} of shape {array.shape}"
        )


def _write_pixels(pixels: HostArray, images: npt.NDArray[Any]) -> None:
    if images.dtype == np.uint8:
        np.multiply(images, np.float32(2 / 255), out=pixels)
        np.subtract(pixels, np.float32(1), out=pixels)
    else:
        pixels[:] = images


def _shapes(config: ModelConfig, form: GraphForm, key: ShapeKey) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of every graph; `image_tokens` as the prefix sees it."""
    axes = key.axes(config, form.pruning)
    return {
        tensor.name: tensor.sizes(axes)
        for component in COMPONENTS
        for spec in (graph_spec(component, config, form),)
        for tensor in (*spec.inputs, *spec.outputs)
    }
