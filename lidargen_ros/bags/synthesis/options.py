# SPDX-License-Identifier: Apache-2.0
"""What ``lidargen synthesize`` may be told. The parameters of the node are used where they have a meaning for bags."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...errors import ConfigError
from ...ros.parameters import PARAMETERS, Settings
from ..message_types import CLOUD, RAW, STRING

POINTS, RANGE_IMAGE, INTENSITY_IMAGE, METADATA = "points", "range_image", "intensity_image", "metadata"
OUTPUTS = {
    POINTS: CLOUD,
    RANGE_IMAGE: RAW,
    INTENSITY_IMAGE: RAW,
    METADATA: STRING,
}
"""Topics that can be written, with their types."""


@dataclass(frozen=True)
class Options:
    """How bags are synthesised. Everything that the written bytes depend on, and the number of threads.

    Attributes:
        settings: parameters of the node; see docs/synthesis.md for those that mean nothing here.
        checkpoint: weights or folder of the published model; empty: the bundle of ``settings``.
        mode: of the published model.
        device: of the published model; empty: the worker's GPU.
        outputs: topics to write, in order.
        namespace: before the names of the topics.
        merge: write the messages of the bag as well.
        slice_s: length of a slice, seconds of recording time.
    """

    settings: Settings = field(default_factory=Settings)
    checkpoint: str = ""
    mode: str = "corrected"
    device: str = ""
    outputs: tuple[str, ...] = tuple(OUTPUTS)
    namespace: str = ""
    merge: bool = False
    slice_s: float = 10.0

    def __post_init__(self) -> None:
        if unknown := [o for o in self.outputs if o not in OUTPUTS]:
            raise ConfigError(f"output {unknown[0]!r} is not known; choose from {', '.join(OUTPUTS)}")
        if not {POINTS, RANGE_IMAGE} & set(self.outputs):
            raise ConfigError(f"outputs {', '.join(self.outputs)} hold no LiDAR; add points or range_image")
        if not 0.1 <= self.slice_s <= 3600:
            raise ConfigError(f"slices of {self.slice_s:g} s are not useful; use 0.1 to 3600")

    def topic(self, output: str) -> str:
        """Full name of an output's topic."""
        return "/".join(("", *(p for p in (self.namespace.strip("/"), output) if p)))

    @property
    def wait_ns(self) -> int:
        """How far apart in recording time the pictures of one set may lie."""
        return round(self.settings.sync_wait * 1e9)

    @property
    def tolerance_ns(self) -> int:
        """How far apart their stamps may lie."""
        return round(self.settings.sync_tolerance * 1e9)


def read_settings(params: Path | None, assignments: Sequence[str]) -> dict[str, Any]:
    """Values from a parameter file of the node and from ``name=value``, the latter winning.

    Raises:
        ConfigError: a file that cannot be read, text that is no assignment, or an unknown name.
    """
    values: dict[str, Any] = {}
    if params is not None:
        try:
            content = yaml.safe_load(params.read_text())
            nodes = [node["ros__parameters"] for node in content.values()]
        except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, KeyError, TypeError) as e:
            raise ConfigError(
                f"{params} is no parameter file ({' '.join(str(e).split())}); start from config/lidargen.yaml"
            ) from e
        for node in nodes:
            values.update(node)
        values.pop("use_sim_time", None)
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or name not in PARAMETERS:
            raise ConfigError(f"--set {text!r} is not name=value of a parameter; docs/node.md lists them")
        values[name] = yaml.safe_load(value)
    return values
