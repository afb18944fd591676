"""Fewer triangles in what is drawn; what collides stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_MESH_GEOM = 7
_DRAWN_GROUP = 1


def thin_drawn_meshes(model: Any, cells: int = 18, keep_below: int = 1200) -> tuple[int, int]:
    """Merge vertices of large meshes that are drawn and never collide, in place.

    Vertices within one cell of a grid over the mesh become one, and triangles that collapse vanish.
    To be done before the first picture: a renderer copies the meshes when it is made.

    Args:
        model: a MuJoCo model.
        cells: of the grid along the longest side of a mesh.
        keep_below: meshes with fewer triangles stay as they are.

    Returns:
        Triangles drawn before and after.
    """
    is_mesh = model.geom_type == _MESH_GEOM
    is_drawn = model.geom_group == _DRAWN_GROUP
    drawn = set(model.geom_dataid[is_mesh & is_drawn].tolist())
    colliding = set(model.geom_dataid[is_mesh & ~is_drawn].tolist())
    before = int(sum(model.mesh_facenum[mesh] for mesh in drawn))
    for mesh in sorted(drawn - colliding):
        if model.mesh_facenum[mesh] >= keep_below:
            _thin(model, mesh, cells)
    return before, int(sum(model.mesh_facenum[mesh] for mesh in drawn))


def _thin(model: Any, mesh: int, cells: int) -> None:
    start, count = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    first, vertices = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    representative = cluster(model.mesh_vert[first : first + vertices], cells)
    rows = slice(start, start + count)
    merged = representative[model.mesh_face[rows]]
    kept = remaining_triangles(merged)
    target = slice(start, start + len(kept))
    model.mesh_face[target] = merged[kept]
    model.mesh_facenormal[target] = model.mesh_facenormal[rows][kept]
    if model.mesh_texcoordadr[mesh] >= 0:
        model.mesh_facetexcoord[target] = model.mesh_facetexcoord[rows][kept]
    model.mesh_facenum[mesh] = len(kept)


def cluster(vertices: npt.NDArray[Any], cells: int) -> npt.NDArray[np.int64]:
    """For each vertex the index of the one that stands for its cell.

    Args:
        vertices: [vertices, 3].
        cells: along the longest side.
    """
    low = vertices.min(axis=0)
    side = max(float((vertices.max(axis=0) - low).max()) / cells, 1e-9)
    _, chosen, group = np.unique(
        np.floor((vertices - low) / side).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    return np.asarray(chosen[group.ravel()], np.int64)


def remaining_triangles(faces: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Indices, ascending, of the triangles [n, 3] that have three corners and come first of their kind."""
    corners = np.sort(faces, axis=1)
    whole = (corners[:, 0] != corners[:, 1]) & (corners[:, 1] != corners[:, 2])
    _, first = np.unique(corners, axis=0, return_index=True)
    unique = np.zeros(len(faces), bool)
    unique[first] = True
    return np.flatnonzero(whole & unique)
