# SPDX-License-Identifier: Apache-2.0
"""The node's parameters as data: name, default, range, meaning, and whether they may change while it runs.

Descriptors, ``config/lidargen.yaml`` and the table in docs/node.md all come from here:

    python -m lidargen_ros.ros.parameters yaml > config/lidargen.yaml
    python -m lidargen_ros.ros.parameters table
"""

import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import yaml

from ..errors import ConfigError
from .clouds import LAYOUTS


def _parameter(
    default: Any,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    read_only: bool = False,
) -> Any:
    return field(
        default=default,
        metadata={
            "description": description,
            "low": low,
            "high": high,
            "choices": choices,
            "read_only": read_only,
        },
    )


@dataclass(frozen=True)
class Settings:
    """Values of all parameters at one moment. Seconds, metres and hertz; fractions of 1."""

    # --- model
    bundle: str = _parameter("nano", "Model bundle: a shipped name or a folder.", read_only=True)
    engine: str = _parameter(
        "auto", "Engine that runs the bundle's graphs; auto takes the best here.", read_only=True
    )
    threads: int = _parameter(
        0, "Host threads per frame; 0 is one per core.", low=0, high=256, read_only=True
    )
    steps: int = _parameter(
        0,
        "Sampling steps: 1 is the best estimate, more draw a sample; 0 takes the bundle's default.",
        low=0,
        high=200,
    )
    seed: int = _parameter(0, "Seed of the sampling noise.", low=0, high=2**31 - 1)
    return_threshold: float = _parameter(
        0.0, "Return probability from which on a ray returns; 0 takes the bundle's.", low=0.0, high=1.0
    )
    # --- cameras and calibration
    cameras: tuple[str, ...] = _parameter(
        ("front", "rear_left", "rear_right"),
        "Topic prefixes of the cameras, in the order of the rig's views; the first one gives the stamp.",
        read_only=True,
    )
    rig: str = _parameter("", "Rig: a shipped name or a YAML file; empty takes the bundle's.")
    calibration: str = _parameter(
        "rig",
        "All from the rig; or intrinsics from the topics PREFIX/camera_info and poses from the rig; or poses from "
        "TF as well (between frame_id and the frame of the CameraInfo).",
        choices=("rig", "camera_info", "tf"),
        read_only=True,
    )
    calibration_max_age: float = _parameter(
        5.0,
        "WARN when a camera's CameraInfo is older than its images by more than this; 0 never does.",
        low=0.0,
        high=86400.0,
    )
    rectified: bool = _parameter(
        False, "Images are rectified: with CameraInfo, use P instead of K and D.", read_only=True
    )
    image_transport: str = _parameter(
        "auto",
        "Subscribe to PREFIX/image (raw), to PREFIX/image/compressed, or to whichever is published, raw first.",
        choices=("auto", "raw", "compressed"),
        read_only=True,
    )
    max_image_pixels: int = _parameter(
        64_000_000, "Images that claim more pixels are refused before memory is taken.", low=1, high=2**31 - 1
    )
    # --- matching and flow
    synchronizer: str = _parameter(
        "own",
        "Matcher: the own one, or ApproximateTimeSynchronizer of message_filters where that is installed.",
        choices=("own", "message_filters"),
        read_only=True,
    )
    sync_tolerance: float = _parameter(
        0.02,
        "A frame belongs to a set if its stamp is at most this far from the first camera's.",
        low=0.0,
        high=1.0,
    )
    sync_wait: float = _parameter(
        0.5, "Longest time, in stamps, that a frame waits for its partners.", low=0.0, high=10.0
    )
    min_cameras: int = _parameter(
        0, "Sets with at least this many cameras are used when others are silent; 0 is all.", low=0, high=32
    )
    time_jump: float = _parameter(
        1.0,
        "A stamp this much older than the camera's newest means that time restarted.",
        low=0.01,
        high=3600.0,
    )
    deadline: float = _parameter(
        0.0,
        "A set that cannot be published before this age is dropped before work is spent on it; 0 never drops.",
        low=0.0,
        high=60.0,
    )
    give_up_after: int = _parameter(
        50,
        "Frames in a row that may fail on the engine; then the node frees the model and, started by itself, ends with "
        "status 1, for a fresh process to try; 0 never gives up.",
        low=0,
        high=100_000,
    )
    lazy: bool = _parameter(
        True, "Skip decoding and the model while nobody subscribes to a cloud, an image or the preview."
    )
    # --- output
    frame_id: str = _parameter("lidar", "Frame of the clouds and range images.")
    point_type: str = _parameter("xyzirc", "Layout of a point; see docs/node.md.", choices=tuple(LAYOUTS))
    organised: bool = _parameter(
        True, "Keep every ray, rows x columns with NaN for no return; false: returns only, height 1."
    )
    return_probability: bool = _parameter(
        False, "Append the field return_probability (float32) to each point."
    )
    point_time: str = _parameter(
        "snapshot",
        "Per-point time of layouts that have one: 0, or the column's time within the spin.",
        choices=("snapshot", "spin"),
    )
    min_returns: float = _parameter(
        0.01,
        "A sweep in which a smaller share of the rays return is not published; 0 publishes every sweep.",
        low=0.0,
        high=1.0,
    )
    min_range: float = _parameter(0.0, "Nearer returns are left out.", low=0.0, high=1000.0)
    max_range: float = _parameter(1000.0, "Farther returns are left out.", low=0.0, high=10000.0)
    range_encoding: str = _parameter(
        "32FC1",
        "range_image in metres with NaN (32FC1), or in millimetres with 0 (16UC1, at most 65.535 m).",
        choices=("32FC1", "16UC1"),
    )
    preview_width: int = _parameter(960, "Width of the preview in pixels.", low=160, high=3840)
    preview_rate: float = _parameter(2.0, "Previews per second, at most.", low=0.1, high=30.0)
    qos: str = _parameter(
        "reliable",
        "Reliability of clouds and images; sensor_data is best effort and needs a large DDS segment.",
        choices=("reliable", "sensor_data"),
        read_only=True,
    )
    # --- life and diagnostics
    autostart: bool = _parameter(
        True, "Configure and activate at start; false waits for a lifecycle manager.", read_only=True
    )
    diagnostics_period: float = _parameter(
        1.0, "Time between two messages on /diagnostics.", low=0.05, high=60.0, read_only=True
    )
    expected_rate: float = _parameter(
        0.0, "Rate of the cameras, for the diagnostics; 0 measures it.", low=0.0, high=1000.0
    )
    rate_warn: float = _parameter(0.9, "WARN below this share of the expected rate.", low=0.0, high=1.0)
    rate_error: float = _parameter(0.5, "ERROR below this share of the expected rate.", low=0.0, high=1.0)
    incomplete_warn: float = _parameter(0.05, "WARN above this share of incomplete sets.", low=0.0, high=1.0)
    latency_warn: float = _parameter(
        1.0, "WARN above this age of a cloud at its publication.", low=0.0, high=60.0
    )
    latency_error: float = _parameter(
        5.0, "ERROR above this age of a cloud at its publication.", low=0.0, high=60.0
    )
    silent_after: float = _parameter(
        2.0, "A camera without an image for this long is reported as silent.", low=0.1, high=600.0
    )
    drop_warn: float = _parameter(
        0.05, "WARN above this share of frames dropped since the last message.", low=0.0, high=1.0
    )
    clock_warn: float = _parameter(
        0.1, "WARN when images are stamped this far in the future.", low=0.0, high=60.0
    )
    stalled_after: float = _parameter(
        5.0,
        "ERROR when one frame keeps a stage (decode, generate, publish) busy for this long.",
        low=0.1,
        high=600.0,
    )
    gpu_temperature_warn: float = _parameter(
        85.0, "WARN from this GPU temperature on, degrees Celsius.", low=0.0, high=150.0
    )
    gpu_temperature_error: float = _parameter(
        95.0, "ERROR from this GPU temperature on, degrees Celsius.", low=0.0, high=150.0
    )
    gpu_memory_warn: float = _parameter(
        0.95, "WARN above this share of the GPU's memory in use.", low=0.0, high=1.0
    )

    def changed(self, values: Mapping[str, Any]) -> "Settings":
        """These settings with others checked and put in. Raises ConfigError."""
        return checked_together(replace(self, **{name: check(name, value) for name, value in values.items()}))


@dataclass(frozen=True)
class Parameter:
    """One row of the table."""

    name: str
    kind: str  # bool, int, float, str, list
    default: Any
    description: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    read_only: bool

    @property
    def range_text(self) -> str:
        if self.choices:
            return ", ".join(self.choices)
        return "" if self.low is None else f"{self.low} to {self.high}"


def _kind(default: Any) -> str:
    return "list" if isinstance(default, tuple) else type(default).__name__


PARAMETERS: dict[str, Parameter] = {
    f.name: Parameter(f.name, _kind(f.default), f.default, **f.metadata)  # type: ignore[arg-type]
    for f in fields(Settings)
}


def check(name: str, value: Any) -> Any:
    """The value as the type that :class:`Settings` holds; whole numbers are fine where a float is wanted.

    Raises:
        ConfigError: unknown name, wrong type, out of range or not a choice.
    """
    p = PARAMETERS.get(name)
    if p is None:
        raise ConfigError(f"parameter {name!r} is not known")
    if p.kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if p.kind == "list" and isinstance(value, list | tuple):
        value = tuple(value)
        if not value or len(set(value)) != len(value):
            raise ConfigError(f"parameter {name!r} is {list(value)}; give at least one name, each once")
    if _kind(value) != p.kind or (p.kind == "list" and not all(isinstance(v, str) for v in value)):
        raise ConfigError(f"parameter {name!r} is {value!r}; it must be of type {p.kind}")
    if p.choices and value not in p.choices:
        raise ConfigError(f"parameter {name!r} is {value!r}; choose one of {p.range_text}")
    if p.low is not None and p.high is not None and not p.low <= value <= p.high:
        raise ConfigError(f"parameter {name!r} is {value:g}; it must lie between {p.low:g} and {p.high:g}")
    return value


def checked_together(settings: Settings) -> Settings:
    """Rules that bind several parameters. Raises ConfigError."""
    for smaller, larger in (
        ("min_range", "max_range"),
        ("rate_error", "rate_warn"),
        ("latency_warn", "latency_error"),
        ("gpu_temperature_warn", "gpu_temperature_error"),
    ):
        if getattr(settings, smaller) > getattr(settings, larger):
            raise ConfigError(
                f"parameter {smaller!r} ({getattr(settings, smaller):g}) must not exceed {larger!r} "
                f"({getattr(settings, larger):g})"
            )
    if settings.min_cameras > len(settings.cameras):
        raise ConfigError(
            f"parameter 'min_cameras' is {settings.min_cameras}; there are {len(settings.cameras)} cameras"
        )
    return settings


def declare(node: Any) -> Settings:
    """Declare all parameters on a node and return their values, overrides included. Raises ConfigError."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    values = {}
    for p in PARAMETERS.values():
        descriptor = ParameterDescriptor(
            description=p.description,
            additional_constraints=f"one of: {p.range_text}" if p.choices else "",
            read_only=p.read_only,
            # Otherwise rclpy refuses `sync_tolerance:=1` for not being 1.0; check() looks after the type.
            dynamic_typing=p.kind == "float",
        )
        if p.low is not None and p.high is not None:
            if p.kind == "int":
                descriptor.integer_range = [IntegerRange(from_value=int(p.low), to_value=int(p.high), step=1)]
            else:
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=float(p.low), to_value=float(p.high), step=0.0)
                ]
        default = list(p.default) if p.kind == "list" else p.default
        values[p.name] = _declared(node, p.name, default, descriptor)
    return Settings().changed(values)


def _declared(node: Any, name: str, default: Any, descriptor: Any) -> Any:
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    try:
        return node.declare_parameter(name, default, descriptor).value
    except InvalidParameterTypeException as e:
        raise ConfigError(
            f"parameter {name!r} has the wrong type; it must be of type {PARAMETERS[name].kind}"
        ) from e
    except InvalidParameterValueException as e:
        raise ConfigError(f"parameter {name!r} is out of range; use {PARAMETERS[name].range_text}") from e


def _groups() -> Iterator[tuple[str, list[Parameter]]]:
    """The table in the order of the class, cut where its comments cut it."""
    titles = {
        "bundle": "model",
        "cameras": "cameras and calibration",
        "synchronizer": "matching and flow",
        "frame_id": "output",
        "autostart": "life and diagnostics",
    }
    title: str = ""
    group: list[Parameter] = []
    for p in PARAMETERS.values():
        if p.name in titles:
            if group:
                yield title, group
            title, group = titles[p.name], []
        group.append(p)
    yield title, group


_QOS_EXAMPLE = """

    # --- quality of service: history, depth, reliability and durability of each topic, under its full name
    # qos_overrides:
    #   /points: {publisher: {reliability: best_effort, depth: 1}}
    #   /front/camera_info: {subscription: {durability: transient_local}}
"""


def render_yaml() -> str:
    """The text of ``config/lidargen.yaml``."""
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        "# Parameters of the node lidargen, with their defaults. Written by",
        "# `python -m lidargen_ros.ros.parameters yaml`; copy and change it, and give it as params_file:=.",
        "/**:",
        "  ros__parameters:",
    ]
    for title, group in _groups():
        lines += ["", f"    # --- {title}"]
        for p in group:
            notes = [n for n in (p.range_text, "read-only" if p.read_only else "") if n]
            text = f"{p.description} [{'; '.join(notes)}]" if notes else p.description
            lines += [f"    # {line}" for line in textwrap.wrap(text, 104, break_on_hyphens=False)]
            default = list(p.default) if p.kind == "list" else p.default
            value = yaml.safe_dump(default, default_flow_style=True, width=200).removesuffix("...\n").strip()
            lines.append(f"    {p.name}: {value}")
    return "\n".join(lines) + _QOS_EXAMPLE


def render_table() -> str:
    """The parameter table of docs/node.md."""
    rows = ["| parameter | type | default | range | may change | meaning |", "|---|---|---|---|---|---|"]
    for _, group in _groups():
        for p in group:
            default = ", ".join(p.default) if p.kind == "list" else p.default
            when = "no" if p.read_only else "yes"
            shown = f"`{default}`" if default != "" else "empty"
            rows.append(f"| `{p.name}` | {p.kind} | {shown} | {p.range_text} | {when} | {p.description} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render_table() if sys.argv[1:] == ["table"] else render_yaml())
