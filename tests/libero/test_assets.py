"""The drawn objects have what the simulator looks up, and surfaces that face outwards."""

from __future__ import annotations

import pathlib
from xml.etree import ElementTree

import numpy as np
import pytest

from vlad_libero.assets.mesh import revolve
from vlad_libero.assets.writer import asset_files, procedural_assets


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return asset_files()


def _names(files: dict[str, bytes], path: str, tag: str) -> set[str | None]:
    return {element.get("name") for element in ElementTree.fromstring(files[path]).iter(tag)}


def test_the_scene_has_what_the_arena_looks_up(files: dict[str, bytes]) -> None:
    path = "scenes/libero_tabletop_base_style.xml"
    legs = {f"table_leg{number}_visual" for number in range(1, 5)}
    assert {"floor", "table_collision", "table_visual"} | legs <= _names(files, path, "geom")
    assert {"texplane", "tex-wall"} <= _names(files, path, "texture")
    assert {"frontview", "birdview", "agentview", "sideview"} <= _names(files, path, "camera")
    assert "table_top" in _names(files, path, "site")
    for name in ("light-gray-floor-tile.png", "light-gray-plaster.png"):
        assert files[f"scenes/textures/{name}"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "path",
    [
        "stable_scanned_objects/akita_black_bowl/akita_black_bowl.xml",
        "stable_scanned_objects/plate/plate.xml",
        "stable_scanned_objects/glazed_rim_porcelain_ramekin/glazed_rim_porcelain_ramekin.xml",
        "stable_hope_objects/cookies/cookies.xml",
        "articulated_objects/wooden_cabinet.xml",
        "articulated_objects/flat_stove.xml",
    ],
)
def test_every_object_has_the_frame_of_robosuite(files: dict[str, bytes], path: str) -> None:
    root = ElementTree.fromstring(files[path])
    assert root.find("./worldbody/body/body[@name='object']") is not None
    sites = {site.get("name") for site in root.findall("./worldbody/body/site")}
    assert sites == {"bottom_site", "top_site", "horizontal_radius_site"}
    for geom in root.iter("geom"):
        assert geom.get("group") in {"0", "1"}
        if geom.get("group") == "1":
            assert (geom.get("contype"), geom.get("conaffinity")) == ("0", "0")
    folder = path.rpartition("/")[0]
    for element in root.iter():
        if file := element.get("file"):
            assert f"{folder}/{file}" in files


def test_fixtures_have_their_joints_and_regions(files: dict[str, bytes]) -> None:
    cabinet, stove = "articulated_objects/wooden_cabinet.xml", "articulated_objects/flat_stove.xml"
    joints = [joint.get("name") for joint in ElementTree.fromstring(files[cabinet]).iter("joint")]
    assert joints == ["top_level", "middle_level", "bottom_level"], "the initial states have this order"
    assert {"top_region", "middle_region", "bottom_region", "top_side"} <= _names(files, cabinet, "site")
    assert _names(files, stove, "joint") == {"button"}
    assert {"cook_region", "burner"} <= _names(files, stove, "site")
    for path in (cabinet, stove):
        for site in ElementTree.fromstring(files[path]).iter("site"):
            if "region" in str(site.get("name")) and site.get("type") == "box":
                assert all(site.get(name) for name in ("pos", "quat", "size"))


def test_turned_surfaces_are_closed_and_face_outwards() -> None:
    mesh = revolve([(0, 0), (1, 0), (1, 2), (0, 2)], segments=64)
    corners = mesh.vertices[mesh.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    # The divergence theorem: only a closed surface that faces outwards has the cylinder's volume.
    volume = np.einsum("ij,ij->i", corners[:, 0], across).sum() / 6
    assert volume == pytest.approx(2 * np.pi, rel=5e-3)
    facing = np.einsum("ij,ikj->ik", across, mesh.normals[mesh.faces])
    assert (facing > 0).all()


def test_the_tree_is_written_once_and_repaired(tmp_path: pathlib.Path) -> None:
    directory = procedural_assets(tmp_path)
    scene = directory / "scenes/libero_tabletop_base_style.xml"
    written = scene.stat().st_mtime_ns
    assert procedural_assets(tmp_path) == directory
    assert scene.stat().st_mtime_ns == written
    scene.write_text("broken")
    assert procedural_assets(tmp_path) == directory
    assert scene.read_bytes() == asset_files()["scenes/libero_tabletop_base_style.xml"]
