"""Cabinet with three drawers, and the stove: fixtures with joints."""

from __future__ import annotations

from vlad_libero.assets import mjcf

# LIBERO puts the origin of a fixture this far below the table, on top of its `bottom_site`.
_SUNK = 0.04

# Cabinet, metres: half width along x, half depth along y and its middle, height; drawers open towards -y.
# Depth and middle leave a bowl room between the carcass and the front of the open drawer.
_WIDTH, _DEPTH, _HEIGHT = 0.118, 0.092, 0.222
_MIDDLE = 0.012
_BOARD = 0.006
# Top first: the suite's initial states list the joints in this order.
_DRAWERS = ("top", "middle", "bottom")
_DRAWER_STEP = (_HEIGHT - 2 * _BOARD) / len(_DRAWERS)
# Low enough that a gripper reaches the rim of a bowl inside, high enough to hold it.
_DRAWER_WALL = 0.024

_WOOD = {"density": 500.0, "friction": (0.8, 0.01, 0.0005)}


def wooden_cabinet() -> dict[str, str]:
    """File name to content, for the folder of articulated objects."""
    root, assets, body = mjcf.object_model("wooden_cabinet", bottom=-_SUNK, top=_HEIGHT)
    mjcf.add(assets, "texture", name="wooden_cabinet_grain", type="2d", file="textures/cabinet_grain.png")
    mjcf.add(
        assets, "material", name="wooden_cabinet_wood_look", texture="wooden_cabinet_grain", specular=0.1
    )
    mjcf.add(
        assets,
        "material",
        name="wooden_cabinet_front_look",
        texture="wooden_cabinet_grain",
        rgba=(0.82, 0.78, 0.74, 1),
        specular=0.1,
    )
    mjcf.add(assets, "material", name="wooden_cabinet_metal_look", rgba=(0.75, 0.75, 0.78, 1), specular=0.8)
    wood = {"type": "box", "material": "wooden_cabinet_wood_look", **_WOOD}
    half_board, middle = _BOARD / 2, _HEIGHT / 2
    for height in (half_board, _HEIGHT - half_board):
        mjcf.panel(body, size=(_WIDTH, _DEPTH, half_board), pos=(0, _MIDDLE, height), **wood)
    for side in (-1, 1):
        mjcf.panel(
            body,
            size=(half_board, _DEPTH, middle),
            pos=(side * (_WIDTH - half_board), _MIDDLE, middle),
            **wood,
        )
    mjcf.panel(
        body, size=(_WIDTH, half_board, middle), pos=(0, _MIDDLE + _DEPTH - half_board, middle), **wood
    )
    mjcf.region(body, "top_side", (0, 0, _HEIGHT + 0.002), (0.112, 0.090, 0.002))
    for number, level in enumerate(_DRAWERS):
        _add_drawer(body, level, _BOARD + (len(_DRAWERS) - 1 - number) * _DRAWER_STEP)
    return {"wooden_cabinet.xml": mjcf.document(root)}


def _add_drawer(cabinet: mjcf.Element, level: str, floor: float) -> None:
    """One drawer, as seen from its own body at the cabinet's origin.

    The friction of the runner is what keeps it where a hand leaves it.
    """
    body = mjcf.add(cabinet, "body", name=f"cabinet_{level}")
    mjcf.add(
        body,
        "joint",
        name=f"{level}_level",
        type="slide",
        axis=(0, 1, 0),
        range=(-0.16, 0.01),
        limited="true",
        damping=10.0,
        frictionloss=3.0,
        armature=0.01,
    )
    wood = {"type": "box", "material": "wooden_cabinet_wood_look", **_WOOD}
    front = {**wood, "material": "wooden_cabinet_front_look"}
    inside = _WIDTH - _BOARD - 0.003
    depth = _DEPTH - _BOARD - 0.003
    thin = 0.003
    face = _MIDDLE - _DEPTH
    mjcf.panel(body, size=(inside, depth, thin), pos=(0, _MIDDLE, floor + 0.004 + thin), **wood)
    wall_middle = floor + 0.004 + _DRAWER_WALL / 2
    for side in (-1, 1):
        mjcf.panel(
            body,
            size=(thin, depth, _DRAWER_WALL / 2),
            pos=(side * (inside - thin), _MIDDLE, wall_middle),
            **wood,
        )
    mjcf.panel(
        body, size=(inside, thin, _DRAWER_WALL / 2), pos=(0, _MIDDLE + depth - thin, wall_middle), **wood
    )
    mjcf.panel(
        body,
        size=(_WIDTH - 0.002, 0.004, _DRAWER_STEP / 2 - 0.002),
        pos=(0, face - 0.005, floor + _DRAWER_STEP / 2),
        **front,
    )
    mjcf.visual(
        body,
        type="capsule",
        fromto=(-0.03, face - 0.018, floor + _DRAWER_STEP / 2, 0.03, face - 0.018, floor + _DRAWER_STEP / 2),
        size=0.004,
        material="wooden_cabinet_metal_look",
    )
    for side in (-1, 1):
        mjcf.visual(
            body,
            type="box",
            size=(0.003, 0.007, 0.003),
            pos=(side * 0.026, face - 0.012, floor + _DRAWER_STEP / 2),
            material="wooden_cabinet_metal_look",
        )
    mjcf.region(
        body,
        f"{level}_region",
        (0, -0.004, floor + _DRAWER_STEP / 2),
        (inside * 0.6, depth * 0.6, _DRAWER_STEP / 2),
    )


# Stove, metres: a flat plate with the burner away from the knob.
_STOVE = (0.100, 0.100, 0.018)
_BURNER_X = 0.150
_PANEL_X = 0.010


def flat_stove() -> dict[str, str]:
    """File name to content, for the folder of articulated objects."""
    root, assets, body = mjcf.object_model("flat_stove", bottom=-_SUNK, top=2 * _STOVE[2])
    looks = {
        "steel": ((0.62, 0.63, 0.65, 1), 0.5),
        "plate": ((0.10, 0.10, 0.11, 1), 0.3),
        "ring": ((0.30, 0.30, 0.32, 1), 0.3),
        "knob": ((0.15, 0.15, 0.16, 1), 0.5),
        "mark": ((0.90, 0.35, 0.10, 1), 0.2),
    }
    for name, (colour, shine) in looks.items():
        mjcf.add(assets, "material", name=f"flat_stove_{name}_look", rgba=colour, specular=shine)
    metal = {"type": "box", "density": 2000.0, "friction": (0.8, 0.01, 0.0005)}
    mjcf.panel(body, size=_STOVE, pos=(_BURNER_X, 0, _STOVE[2]), material="flat_stove_steel_look", **metal)
    mjcf.panel(
        body,
        size=(0.036, _STOVE[1], _STOVE[2] * 0.8),
        pos=(_PANEL_X, 0, _STOVE[2] * 0.8),
        material="flat_stove_steel_look",
        **metal,
    )
    top = 2 * _STOVE[2]
    for radius, look, over in ((0.082, "plate", 0.0006), (0.060, "ring", 0.0010), (0.050, "plate", 0.0014)):
        mjcf.visual(
            body,
            type="cylinder",
            size=(radius, 0.0006),
            pos=(_BURNER_X, 0, top + over),
            material=f"flat_stove_{look}_look",
        )
    mjcf.add(
        body,
        "site",
        name="burner",
        type="cylinder",
        pos=(_BURNER_X, 0, top + 0.0025),
        quat=(1, 0, 0, 0),
        size=(0.05, 0.0006),
        rgba=(0.9, 0.1, 0.05, 0),
    )
    mjcf.region(body, "cook_region", (_BURNER_X, 0, top + 0.002), (0.05, 0.05, 0.002))
    knob = mjcf.add(body, "body", name="stove_button", pos=(_PANEL_X, 0, 2 * _STOVE[2] * 0.8))
    mjcf.add(
        knob,
        "joint",
        name="button",
        type="hinge",
        axis=(0, 0, 1),
        range=(-0.005, 2.1),
        limited="true",
        damping=1.0,
        frictionloss=0.1,
        armature=0.001,
    )
    mjcf.solid(knob, type="cylinder", size=(0.018, 0.010), pos=(0, 0, 0.010), density=800.0)
    mjcf.visual(
        knob, type="cylinder", size=(0.0182, 0.0102), pos=(0, 0, 0.010), material="flat_stove_knob_look"
    )
    mjcf.visual(
        knob, type="box", size=(0.002, 0.008, 0.0004), pos=(0, 0.008, 0.0206), material="flat_stove_mark_look"
    )
    return {"flat_stove.xml": mjcf.document(root)}
