"""The room: floor, walls, table, light and cameras."""

from __future__ import annotations

from vlad_libero.assets import mjcf

FLOOR_TEXTURE = "light-gray-floor-tile.png"
WALL_TEXTURE = "light-gray-plaster.png"
TABLE_TEXTURE = "table-wood.png"

# LIBERO sets size and place of table and legs, and the pose of the camera that policies see.
_CAMERAS = {
    "frontview": ((1.7, 0.0, 1.5), (0.56, 0.43, 0.43, 0.56)),
    "birdview": ((0.0, 0.0, 2.7), (0.7071, 0.0, 0.0, 0.7071)),
    "agentview": ((0.6586, 0.0, 1.6103), (0.638, 0.3048, 0.3048, 0.638)),
    "sideview": ((0.0, 1.5, 1.4), (0.0, 0.0, 0.545, 0.838)),
}


def tabletop_scene() -> str:
    """The document of `scenes/libero_tabletop_base_style.xml`."""
    root = mjcf.Element("mujoco", {"model": "tabletop"})
    assets = mjcf.add(root, "asset")
    mjcf.add(
        assets,
        "texture",
        name="sky",
        type="skybox",
        builtin="gradient",
        rgb1=(0.86, 0.87, 0.9),
        rgb2=(0.45, 0.47, 0.5),
        width=128,
        height=128,
    )
    looks = {
        "texplane": (FLOOR_TEXTURE, "floorplane", (5, 5), 0.1),
        "tex-wall": (WALL_TEXTURE, "walls_mat", (4, 2), 0.0),
        "tex-table": (TABLE_TEXTURE, "table_mat", (1, 1), 0.1),
    }
    for texture, (file, material, repeat, shine) in looks.items():
        mjcf.add(assets, "texture", name=texture, type="2d", file=f"textures/{file}")
        mjcf.add(
            assets,
            "material",
            name=material,
            texture=texture,
            texrepeat=repeat,
            texuniform="false",
            specular=shine,
            shininess=shine,
            reflectance=0,
        )
    mjcf.add(assets, "material", name="table_legs_mat", rgba=(0.35, 0.35, 0.37, 1), specular=0.3)
    world = mjcf.add(root, "worldbody")
    mjcf.add(
        world, "geom", name="floor", type="plane", size=(3, 3, 0.1), group=1, condim=3, material="floorplane"
    )
    for name, pos, quat in (
        ("wall_back", (-1.6, 0.0, 1.5), (0.5, 0.5, 0.5, 0.5)),
        ("wall_left", (0.0, 2.4, 1.5), (0.7071, 0.7071, 0.0, 0.0)),
        ("wall_right", (0.0, -2.4, 1.5), (0.7071, -0.7071, 0.0, 0.0)),
    ):
        mjcf.visual(
            world, name=name, type="plane", size=(3, 2, 0.01), pos=pos, quat=quat, material="walls_mat"
        )
    _add_table(world)
    for source, direction, strength in (
        ((1.2, 1.2, 3.5), (-0.3, -0.3, -1.0), 0.35),
        ((0.8, -1.6, 3.5), (-0.2, 0.4, -1.0), 0.25),
        ((3.0, 0.5, 1.8), (-1.0, -0.25, -0.2), 0.35),
    ):
        mjcf.add(
            world,
            "light",
            pos=source,
            dir=direction,
            directional="true",
            castshadow="false",
            diffuse=(strength,) * 3,
            specular=(0.15,) * 3,
        )
    for camera, (place, turn) in _CAMERAS.items():
        mjcf.add(world, "camera", name=camera, mode="fixed", pos=place, quat=turn)
    return mjcf.document(root)


def _add_table(world: mjcf.Element) -> None:
    table = mjcf.add(world, "body", name="table", pos=(0, 0, 0.875))
    size = (0.5, 0.6, 0.025)
    mjcf.solid(table, name="table_collision", type="box", size=size, friction=(0.8, 0.005, 0.0001))
    mjcf.visual(table, name="table_visual", type="box", size=size, material="table_mat")
    for number in range(1, 5):
        mjcf.visual(
            table,
            name=f"table_leg{number}_visual",
            type="cylinder",
            size=(0.025, 0.4),
            material="table_legs_mat",
        )
    mjcf.add(table, "site", name="table_top", pos=(0, 0, 0.025), size=0.001, rgba=(0, 0, 0, 0))
