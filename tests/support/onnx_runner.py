"""Runs exported graphs on the CPU, chained as a backend chains them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from vlad_engines.export.bundle import Bundle
from vlad_engines.export.spec import COMPONENTS, Component

Arrays = dict[str, npt.NDArray[Any]]


class OnnxRunner:
    """The three graphs of a bundle in onnxruntime."""

    def __init__(self, bundle: Bundle) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # It takes float8 between these for int8, which it could multiply at once.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._form = bundle.form
        self._sessions: dict[Component, Any] = {
            component: onnxruntime.InferenceSession(
                str(bundle.path(component)), options, providers=["CPUExecutionProvider"]
            )
            for component in COMPONENTS
        }

    def run(self, component: Component, inputs: Arrays) -> Arrays:
        """Outputs by name; inputs that the graph does not have are left out."""
        session = self._sessions[component]
        wanted = {entry.name for entry in session.get_inputs()}
        outputs = session.run(None, {name: value for name, value in inputs.items() if name in wanted})
        return dict(zip((entry.name for entry in session.get_outputs()), outputs, strict=True))

    def path(self, inputs: Arrays) -> npt.NDArray[np.float32]:
        """All of `x_t` `[N, B, H, A]`, from `pixels`, `prompt_tokens`, `prefix_lengths`, `state`, `x_t`."""
        return self.outputs(inputs)["x_path"]

    def outputs(self, inputs: Arrays) -> Arrays:
        """Whatever the graphs hand over, and all of `x_t` as `x_path`, step by step or not."""
        values = dict(inputs)
        values.update(self.run("vision", values))
        tokens = values["image_tokens"]
        batch = len(values["prompt_tokens"])
        values["image_tokens"] = tokens.reshape(batch, -1, tokens.shape[-1])
        values.update(self.run("prefix", values))
        if self._form.denoise_form == "unrolled":
            return {**values, **self.run("denoise", values)}
        path = []
        for step in range(self._form.num_steps):
            values["step"] = np.array([step], np.int32)
            values["x_t"] = self.run("denoise", values)["x_next"]
            path.append(values["x_t"])
        return {**values, "x_path": np.stack(path)}
