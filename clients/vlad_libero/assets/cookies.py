"""The box of cookies."""

from __future__ import annotations

from vlad_libero.assets import mjcf

_HALF = (0.031, 0.043, 0.010)


def cookie_box() -> dict[str, str]:
    """File name to content, for the folder of the object."""
    root, assets, body = mjcf.object_model("cookies", bottom=-_HALF[2], top=_HALF[2])
    looks = {
        "carton": (0.78, 0.13, 0.12, 1.0),
        "label": (0.95, 0.88, 0.62, 1.0),
        "cookie": (0.63, 0.41, 0.20, 1.0),
    }
    for name, colour in looks.items():
        mjcf.add(assets, "material", name=f"cookies_{name}_look", rgba=colour, specular=0.2, shininess=0.2)
    mjcf.panel(
        body,
        type="box",
        size=_HALF,
        material="cookies_carton_look",
        density=300.0,
        friction=(1.0, 0.01, 0.0005),
    )
    top = _HALF[2] + 0.0003
    mjcf.visual(body, type="box", size=(0.020, 0.030, 0.0003), pos=(0, 0, top), material="cookies_label_look")
    for x, y in ((-0.008, -0.016), (0.007, 0.002), (-0.007, 0.018)):
        mjcf.visual(
            body,
            type="cylinder",
            size=(0.0085, 0.0003),
            pos=(x, y, top + 0.0006),
            material="cookies_cookie_look",
        )
    return {"cookies.xml": mjcf.document(root)}
