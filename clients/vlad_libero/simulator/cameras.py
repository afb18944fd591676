"""Pictures of the two cameras that LIBERO policies see."""

from __future__ import annotations

import atexit
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_libero.simulator.thinning import thin_drawn_meshes

Image = npt.NDArray[np.uint8]

AGENT_CAMERA = "agentview"
WRIST_CAMERA = "robot0_eye_in_hand"


@dataclasses.dataclass(frozen=True)
class Rendering:
    """How pictures are drawn.

    Attributes:
        name: as results record it.
        side: of the drawn square, pixels.
        sent_side: of the square that the policy gets; smaller pictures are resized.
        samples: per pixel, for smooth edges; 0 for none.
        thin_meshes: True to draw large meshes with fewer triangles.
    """

    name: str
    side: int
    sent_side: int
    samples: int
    thin_meshes: bool

    def __post_init__(self) -> None:
        if not 16 <= self.sent_side <= self.side <= 1024:
            raise ValueError(
                f"sides must fulfil 16 <= sent_side <= side <= 1024, not {self.sent_side} and {self.side}"
            )


PUBLISHED = Rendering("published", side=256, sent_side=224, samples=4, thin_meshes=False)
LIGHT = Rendering("light", side=224, sent_side=224, samples=0, thin_meshes=True)
RENDERINGS = {rendering.name: rendering for rendering in (PUBLISHED, LIGHT)}


class Cameras:
    """Draws a model; not thread safe, and bound to the process that made it."""

    def __init__(self, model: Any, rendering: Rendering) -> None:
        import mujoco

        self._rendering = rendering
        model.vis.quality.offsamples = rendering.samples
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, rendering.side)
        model.vis.global_.offheight = max(model.vis.global_.offheight, rendering.side)
        if rendering.thin_meshes:
            thin_drawn_meshes(model)
        self._model = model
        self._renderer = mujoco.Renderer(model, rendering.side, rendering.side)
        # EGL shuts down at exit before the renderer's own destructor, which then complains.
        atexit.register(self.close)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0

    def view(self, data: Any, camera: str) -> Image:
        """The picture of a camera, upright, uint8 [side, side, 3]."""
        self._renderer.update_scene(data, camera=camera, scene_option=self._options)
        picture: Image = self._renderer.render()
        return picture

    def observe(self, data: Any) -> tuple[Image, Image]:
        """What the policy gets of both cameras, uint8 [sent_side, sent_side, 3] each.

        LIBERO's policies were trained on pictures turned by 180 degrees from the renderer's, whose
        first row is the lowest one: that is the upright picture, mirrored left to right.
        """
        sent = (self._sent(self.view(data, camera)) for camera in (AGENT_CAMERA, WRIST_CAMERA))
        agent, wrist = sent
        return agent, wrist

    def upload_texture(self, texture: int) -> None:
        """Draw with the texture's present content from now on."""
        import mujoco

        self._renderer._gl_context.make_current()
        mujoco.mjr_uploadTexture(self._model, self._renderer._mjr_context, texture)

    def close(self) -> None:
        """Give the graphics memory back."""
        atexit.unregister(self.close)
        self._renderer.close()

    def _sent(self, picture: Image) -> Image:
        mirrored = np.ascontiguousarray(picture[:, ::-1])
        side = self._rendering.sent_side
        if mirrored.shape[0] == side:
            return mirrored
        from vlad_client.image_tools import resize_with_pad

        return np.asarray(resize_with_pad(mirrored, side, side), np.uint8)
