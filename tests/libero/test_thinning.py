"""Thinner meshes keep their shape."""

from __future__ import annotations

import numpy as np

from vlad_libero.assets.mesh import revolve
from vlad_libero.simulator.thinning import cluster, remaining_triangles


def test_vertices_of_a_cell_become_one_that_is_near() -> None:
    vertices = np.random.default_rng(0).random((500, 3))
    chosen = cluster(vertices, cells=5)
    assert len(set(chosen.tolist())) <= 6**3
    assert (chosen[chosen] == chosen).all()
    assert np.linalg.norm(vertices - vertices[chosen], axis=1).max() <= np.sqrt(3) / 5 + 1e-9


def test_collapsed_and_doubled_triangles_vanish() -> None:
    faces = np.array([[0, 1, 2], [1, 1, 2], [2, 0, 1], [3, 4, 5]])
    assert remaining_triangles(faces).tolist() == [0, 3]


def test_a_fine_mesh_becomes_a_coarse_one_of_the_same_size() -> None:
    heights = np.linspace(0, 1, 60)
    mesh = revolve([(0.5, z) for z in heights], segments=200)
    chosen = cluster(mesh.vertices, cells=10)
    merged = chosen[mesh.faces]
    kept = merged[remaining_triangles(merged)]
    assert 0 < len(kept) < len(mesh.faces) / 20
    used = mesh.vertices[np.unique(kept)]
    assert np.ptp(used, axis=0).min() > 0.85
