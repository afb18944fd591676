"""The objects of LIBERO-Spatial drawn by ourselves: shapes from formulas, textures from noise.

Names, joints, sites and directions are what the simulator looks up; every dimension, contact constant
and colour is our own choice. Pictures differ from LIBERO's, and so do success rates.
"""

from __future__ import annotations

from vlad_libero.assets.writer import procedural_assets, write_assets

__all__ = ["procedural_assets", "write_assets"]
