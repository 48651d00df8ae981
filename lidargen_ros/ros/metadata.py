# SPDX-License-Identifier: Apache-2.0
"""What the latched topic ``metadata`` says: everything constant that a reader of the other topics needs. No ROS in here."""

from typing import Any

from ..cameras import Rig
from ..sensors import Sensor
from .clouds import FULL_INTENSITY
from .parameters import Settings

RANGE_IMAGE_RULE = (
    "range_image[row, column] is the distance in metres along the ray; its point is that distance times "
    "(cos e cos a, cos e sin a, sin e) with e = elevations_deg[row] and a = azimuths_rad[column], in frame_id"
)


def metadata_content(sensor: Sensor, rig: Rig, model: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Beam table, rig, model, and how to read the topics, as plain values."""
    return {
        "frame_id": settings.frame_id,
        "sensor": sensor.to_dict(),
        "azimuths_rad": [round(float(a), 7) for a in sensor.azimuths()],
        "rig": rig.to_dict(),
        "cameras": list(settings.cameras),
        "model": model,
        "point_type": settings.point_type,
        "organised": settings.organised,
        "intensity_scale": FULL_INTENSITY,
        "range_image": {"encoding": settings.range_encoding, "rule": RANGE_IMAGE_RULE},
    }
