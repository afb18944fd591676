"""Triangle meshes from profiles; knows nothing of objects."""

from __future__ import annotations

import dataclasses
from typing import Sequence

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: float64 [vertices, 3], metres.
        normals: float64 [vertices, 3], unit vectors.
        texcoords: float64 [vertices, 2].
        faces: int64 [faces, 3], counter-clockwise from outside.
    """

    vertices: npt.NDArray[np.float64]
    normals: npt.NDArray[np.float64]
    texcoords: npt.NDArray[np.float64]
    faces: npt.NDArray[np.int64]

    def to_obj(self) -> str:
        """The mesh as Wavefront OBJ."""
        lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in self.vertices]
        lines += [f"vt {u:.5f} {v:.5f}" for u, v in self.texcoords]
        lines += [f"vn {x:.5f} {y:.5f} {z:.5f}" for x, y, z in self.normals]
        lines += ["f " + " ".join(f"{i}/{i}/{i}" for i in face) for face in self.faces + 1]
        return "\n".join(lines) + "\n"


def revolve(profile: Sequence[tuple[float, float]], segments: int = 28) -> Mesh:
    """The surface that a line in the (radius, height) plane sweeps around the z axis.

    Args:
        profile: points in metres, in the order that keeps the outside on the right hand.
        segments: steps of a full turn.

    Raises:
        ValueError: for fewer than two points, or fewer than three segments.
    """
    points = np.asarray(profile, np.float64)
    if len(points) < 2 or segments < 3:
        raise ValueError(f"a surface needs two points and three segments, not {len(points)} and {segments}")
    angles = np.linspace(0, 2 * np.pi, segments + 1)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # [segments + 1, 2]
    radial, height = _profile_normals(points)
    rings = len(points)
    vertices = np.empty((rings, segments + 1, 3))
    vertices[..., :2] = points[:, None, :1] * around
    vertices[..., 2] = points[:, 1:]
    normals = np.empty_like(vertices)
    normals[..., :2] = radial[:, None, None] * around
    normals[..., 2] = height[:, None]
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    texcoords = np.empty((rings, segments + 1, 2))
    texcoords[..., 0] = angles / (2 * np.pi)
    texcoords[..., 1] = (length / length[-1])[:, None]
    return Mesh(
        vertices.reshape(-1, 3),
        normals.reshape(-1, 3),
        texcoords.reshape(-1, 2),
        _faces(points, rings, segments),
    )


def _profile_normals(
    points: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Radial and vertical part of the outward normal at each point: the mean of its two edges."""
    edges = np.diff(points, axis=0)
    across = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    summed = np.zeros_like(points)
    summed[:-1] += across
    summed[1:] += across
    summed /= np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-9)
    return summed[:, 0], summed[:, 1]


def _faces(points: npt.NDArray[np.float64], rings: int, segments: int) -> npt.NDArray[np.int64]:
    columns = segments + 1
    faces = []
    for ring in range(rings - 1):
        for segment in range(segments):
            lower = ring * columns + segment
            upper = lower + columns
            if points[ring, 0] > 0:
                faces.append((lower, lower + 1, upper))
            if points[ring + 1, 0] > 0:
                faces.append((lower + 1, upper + 1, upper))
    return np.asarray(faces, np.int64)
