"""Bowl, plate and ramekin: turned shapes, with rings of boxes for what the gripper touches."""

from __future__ import annotations

import dataclasses
import itertools
import math

from vlad_libero.assets import mjcf
from vlad_libero.assets.mesh import revolve

_SIDES = 16


@dataclasses.dataclass(frozen=True)
class Turned:
    """A thin-walled round vessel.

    Attributes:
        name: of the object, as LIBERO calls it.
        foot: radius of the flat bottom, metres.
        rim: outer radius at the top.
        height: of the rim over the bottom.
        wall: thickness of wall and bottom.
        shoulder: share of the height above which the wall stands upright, so that fingers hold it flat.
        density: of wall and bottom, kg/m^3.
        colour: of the vessel, RGBA in 0..1.
        trim: colour of the band along the rim.
        shine: specular part of the look, 0 to 1.
    """

    name: str
    foot: float
    rim: float
    height: float
    wall: float
    shoulder: float
    density: float
    colour: tuple[float, float, float, float]
    trim: tuple[float, float, float, float]
    shine: float

    def outer_radius(self, height: float) -> float:
        """Outer radius at a height, metres."""
        rise = min(1.0, height / (self.height * self.shoulder))
        return self.foot + (self.rim - self.foot) * (1 - math.cos(math.pi * rise)) / 2

    def files(self) -> dict[str, str]:
        """File name to content, for the folder of the object."""
        root, assets, body = mjcf.object_model(self.name, bottom=0.0, top=self.height)
        shapes = {"body": (self._profile(), self.colour), "trim": (self._band(), self.trim)}
        files = {}
        for part, (profile, colour) in shapes.items():
            mesh, material = f"{self.name}_{part}", f"{self.name}_{part}_look"
            files[f"{part}.obj"] = revolve(profile).to_obj()
            mjcf.add(assets, "mesh", name=mesh, file=f"{part}.obj")
            mjcf.add(
                assets, "material", name=material, rgba=colour, specular=self.shine, shininess=self.shine
            )
            mjcf.visual(body, type="mesh", mesh=mesh, material=material)
        self._add_solids(body)
        files[f"{self.name}.xml"] = mjcf.document(root)
        return files

    def _heights(self, lowest: float, steps: int) -> list[float]:
        return [lowest + (self.height - lowest) * step / steps for step in range(steps + 1)]

    def _profile(self) -> list[tuple[float, float]]:
        """Bottom, outside up, over the rim, inside down."""
        outside = [(self.outer_radius(z), z) for z in self._heights(0.0, 8)]
        inside = [
            (self.outer_radius(max(0.0, z - self.wall / 2)) - self.wall, z)
            for z in reversed(self._heights(self.wall, 8))
        ]
        return [
            (0.0, 0.0),
            *outside,
            (self.rim - self.wall / 2, self.height + 0.0008),
            *inside,
            (0.0, self.wall),
        ]

    def _band(self) -> list[tuple[float, float]]:
        """A skin on the rim, a hair outside of it."""
        low = self.height - max(0.003, 0.08 * self.height)
        over = 0.0004
        return [
            (self.outer_radius(low) + over, low),
            (self.rim + over, self.height),
            (self.rim - self.wall / 2, self.height + 0.0008 + over),
            (self.rim - self.wall - over, self.height),
            (self.outer_radius(low) - self.wall - over, low),
        ]

    def _add_solids(self, body: mjcf.Element) -> None:
        contact = {
            "density": self.density,
            "friction": (1.0, 0.01, 0.0005),
            "solref": (0.004, 1.0),
            "solimp": (0.95, 0.99, 0.001),
            "condim": 4,
        }
        mjcf.solid(
            body, type="cylinder", size=(self.foot, self.wall / 2), pos=(0, 0, self.wall / 2), **contact
        )
        levels = self._heights(self.wall, 4)
        for low, high in itertools.pairwise(levels):
            inner, outer = self.outer_radius(low), self.outer_radius(high)
            lean = math.atan2(outer - inner, high - low)
            length = math.hypot(outer - inner, high - low)
            middle = (inner + outer) / 2 - self.wall / 2 * math.cos(lean)
            for side in range(_SIDES):
                angle = 2 * math.pi * side / _SIDES
                # Turn about z first, then lean outwards about the tangent (the box's own y).
                turn = (math.cos(angle / 2), math.sin(angle / 2))
                tip = (math.cos(lean / 2), math.sin(lean / 2))
                mjcf.solid(
                    body,
                    type="box",
                    size=(self.wall / 2, max(inner, outer) * math.tan(math.pi / _SIDES), length / 2),
                    pos=(middle * math.cos(angle), middle * math.sin(angle), (low + high) / 2),
                    quat=(turn[0] * tip[0], -turn[1] * tip[1], turn[0] * tip[1], turn[1] * tip[0]),
                    **contact,
                )


BOWL = Turned(
    name="akita_black_bowl",
    foot=0.028,
    rim=0.054,
    height=0.052,
    wall=0.0045,
    shoulder=0.72,
    density=900.0,
    colour=(0.055, 0.055, 0.065, 1.0),
    trim=(0.16, 0.16, 0.18, 1.0),
    shine=0.6,
)
PLATE = Turned(
    name="plate",
    foot=0.040,
    rim=0.060,
    height=0.013,
    wall=0.005,
    shoulder=1.0,
    density=2000.0,
    colour=(0.93, 0.92, 0.89, 1.0),
    trim=(0.72, 0.22, 0.17, 1.0),
    shine=0.4,
)
RAMEKIN = Turned(
    name="glazed_rim_porcelain_ramekin",
    foot=0.036,
    rim=0.043,
    height=0.042,
    wall=0.005,
    shoulder=0.5,
    density=1500.0,
    colour=(0.91, 0.89, 0.84, 1.0),
    trim=(0.45, 0.30, 0.20, 1.0),
    shine=0.4,
)
