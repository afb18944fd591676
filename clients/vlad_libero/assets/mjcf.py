"""MuJoCo's XML, written element by element."""

from __future__ import annotations

import math
from typing import Iterable
from xml.etree import ElementTree

Element = ElementTree.Element

# Groups as robosuite reads them: 0 collides and has mass, 1 is seen.
_COLLISION, _VISUAL = "0", "1"

# LIBERO draws a place from a square of 2 cm narrowed by this radius on each side, which turns it
# inside out: places spread by this radius less 1 cm. The suite's initial states spread by 1.5 cm;
# demonstrations shall cover that, so theirs spread by 2 cm.
_PLACEMENT_RADIUS = 0.03


def add(parent: Element, tag: str, **attributes: object) -> Element:
    """A new child; numbers and sequences of numbers are written the way MuJoCo reads them."""
    return ElementTree.SubElement(
        parent, tag, {name.rstrip("_"): _text(value) for name, value in attributes.items()}
    )


def visual(parent: Element, **attributes: object) -> Element:
    """A geom that is seen and touches nothing."""
    return add(parent, "geom", group=_VISUAL, contype=0, conaffinity=0, mass=0, **attributes)


def solid(parent: Element, **attributes: object) -> Element:
    """A geom that collides and weighs, and is not seen."""
    return add(parent, "geom", group=_COLLISION, rgba=(0.5, 0.5, 0.5, 0), **attributes)


def panel(parent: Element, **attributes: object) -> None:
    """A box that is seen as it collides."""
    seen = {name: value for name, value in attributes.items() if name not in {"density", "friction"}}
    solid(parent, **{name: value for name, value in attributes.items() if name != "material"})
    visual(parent, **seen)


def object_model(name: str, *, bottom: float, top: float) -> tuple[Element, Element, Element]:
    """The frame that robosuite expects of an object.

    Args:
        name: of the model.
        bottom: height of its lowest point over its origin, metres.
        top: of its highest.

    Returns:
        The document, its assets and the body that takes geoms.
    """
    root = ElementTree.Element("mujoco", {"model": name})
    assets = add(root, "asset")
    outer = add(add(root, "worldbody"), "body")
    body = add(outer, "body", name="object")
    marks = {
        "bottom_site": (0, 0, bottom),
        "top_site": (0, 0, top),
        "horizontal_radius_site": (_PLACEMENT_RADIUS, 0, 0),
    }
    for site, position in marks.items():
        add(outer, "site", name=site, pos=position, size=0.002, rgba=(0, 0, 0, 0))
    return root, assets, body


def region(parent: Element, name: str, pos: Iterable[float], half_size: Iterable[float]) -> None:
    """An invisible box that the simulator looks up to place objects and to check goals."""
    add(
        parent,
        "site",
        name=name,
        type="box",
        pos=tuple(pos),
        quat=(1, 0, 0, 0),
        size=tuple(half_size),
        rgba=(0, 0, 0, 0),
    )


def about_z(angle: float) -> tuple[float, float, float, float]:
    """The quaternion (w, x, y, z) of a turn about the vertical, radians."""
    return math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)


def document(root: Element) -> str:
    """The text of a whole model, indented."""
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _text(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(_text(part) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
