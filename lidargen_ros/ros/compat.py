# SPDX-License-Identifier: Apache-2.0
"""The one place for differences between installations: ROS from a distribution (Humble, Jazzy, Kilted) or from PyPI
wheels, with or without the packages that exist only in a distribution.

Nothing here imports rclpy at import time, so that tests and tools without ROS may use it.
"""

import importlib
import importlib.util
import os
import shutil
import site
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..resources import config_path

# Fast DDS copies whole messages into freshly mapped memory unless malloc keeps large blocks: 6.5 -> 2.1 ms per cloud.
# Both are needed; above 32 MiB glibc ignores the first.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}
_WHEEL_GUARD = "_ROS_WHEELS_BOOTSTRAP_COMPLETE"


def has(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is absent
        return False


def require_ros() -> None:
    """Raises ConfigError, with the remedy, where rclpy is not installed."""
    if not has("rclpy"):
        raise ConfigError(
            "rclpy is not installed; source a ROS 2 installation, or on x86-64: pip install 'lidargen_ros[ros]'"
        )


def optional(module: str) -> ModuleType | None:
    """A module that only some installations have, or None where it is absent or broken (cv_bridge on NumPy 2)."""
    try:
        return importlib.import_module(module)
    except (ImportError, AttributeError):
        return None


def wheel_library_folders() -> list[str]:
    """Library folders of the ROS wheels of this interpreter; empty on a ROS distribution."""
    folders = [Path(p) for p in {*site.getsitepackages(), *sys.path} if p]
    return sorted({str(d.resolve()) for f in folders if f.is_dir() for d in f.glob("ros_*.libs")})


def process_environment(
    *,
    domain_id: int | None = None,
    loopback: bool = False,
    tuned: bool = True,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Environment for a process that uses rclpy.

    The ROS wheels re-execute every interpreter once to set ``LD_LIBRARY_PATH`` and mark the environment; a child
    that inherits the mark but belongs to another virtual environment then fails to find its libraries. Here both
    are set for this interpreter, so that a child neither re-executes nor misses anything.

    Args:
        domain_id: ``ROS_DOMAIN_ID``.
        loopback: no traffic leaves this machine.
        tuned: Fast DDS profile with a large shared-memory segment, and malloc settings; a profile that the
            user has chosen stays.
        base: environment to start from; default this process's.
    """
    env = dict(os.environ if base is None else base)
    if libraries := wheel_library_folders():
        inherited = [p for p in env.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p and p not in libraries]
        env["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, *inherited])
        env[_WHEEL_GUARD] = "1"
    if domain_id is not None:
        env["ROS_DOMAIN_ID"] = str(domain_id)
    if loopback:
        env["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        if env.get("ROS_DISTRO") == "humble":
            env["ROS_LOCALHOST_ONLY"] = "1"
    if tuned:
        env.update(tuning(loopback=loopback, base=env))
    env["PYTHONUNBUFFERED"] = "1"
    root = str(Path(__file__).resolve().parents[2])
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        paths = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p and p != root]
        env["PYTHONPATH"] = os.pathsep.join([root, *paths])  # a checkout that is not installed
    return env


def tuning(*, loopback: bool = False, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables for a process that sends or takes large messages; what the user has set himself stays.

    Args:
        loopback: a profile that does not leave this machine, whatever the user has set.
        base: environment of the process; default this process's.
    """
    env = os.environ if base is None else base
    profile = str(config_path("fastdds_loopback.xml" if loopback else "fastdds.xml"))
    chosen = {"FASTDDS_DEFAULT_PROFILES_FILE": profile, **MALLOC}
    if env.get("ROS_DISTRO") == "humble":  # Fast DDS 2 reads the file under its old name only
        chosen["FASTRTPS_DEFAULT_PROFILES_FILE"] = profile
    mine = {k for k in chosen if loopback and k.endswith("PROFILES_FILE")}
    return {k: v for k, v in chosen.items() if k in mine or k not in env}


def module_command(module: str, *arguments: str) -> list[str]:
    """Command line of a module of this package as a process of its own, in this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def free_domain_id() -> int:
    """A ROS domain that no process of this machine uses now, starting from one derived from the process id.

    A participant of domain d listens on UDP port 7400 + 250 d + 10 (OMG DDSI-RTPS 9.6.1.1); where that port can be
    bound there is none. 101 is the highest domain whose ports stay clear of Linux' ephemeral ones.
    """
    for step in range(100):
        domain = 1 + (os.getpid() + step) % 100
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7400 + 250 * domain + 10))
            except OSError:
                continue
            return domain
    raise ConfigError(
        "no free ROS domain id between 1 and 100; stop other ROS 2 processes or set ROS_DOMAIN_ID"
    )


def data_assigner(message_class: Any) -> Callable[[Any, NDArray], None]:
    """A function that puts a flat uint8 array into ``message.data``, the fastest way that this installation allows.

    The public setter copies an ``array.array`` once more or checks it byte by byte, depending on the distribution
    (0.3 to 250 ms for 3.7 MB). Storing the array itself costs nothing and is serialised the same; whether it is,
    is tried here once per message type, with the public setter as the fall back.
    """
    from array import array

    def public(message: Any, data: NDArray) -> None:
        message.data = array("B", data.tobytes())

    def direct(message: Any, data: NDArray) -> None:
        message._data = data

    serialize = optional("rclpy.serialization")
    if serialize is None or not hasattr(message_class(), "_data"):
        return public
    probe, message = np.arange(251, dtype=np.uint8), message_class()
    direct(message, probe)
    try:  # the data itself is compared: padding between fields is whatever memory held
        again = serialize.deserialize_message(serialize.serialize_message(message), message_class)
    except (TypeError, AssertionError, RuntimeError):
        return public
    return direct if bytes(again.data) == probe.tobytes() else public


def add_parameter_callbacks(
    node: Any, validate: Callable[[list[Any]], Any], apply: Callable[[list[Any]], None]
) -> None:
    """Validate parameters before they are set and apply them afterwards.

    Humble knows no callback afterwards; there a valid change is applied at the end of the validation.
    """
    if hasattr(node, "add_post_set_parameters_callback"):
        node.add_on_set_parameters_callback(validate)
        node.add_post_set_parameters_callback(apply)
        return

    def both(parameters: list[Any]) -> Any:
        result = validate(parameters)
        if result.successful:
            apply(parameters)
        return result

    node.add_on_set_parameters_callback(both)


def cv_bridge_converter() -> Callable[[Any], NDArray] | None:
    """Converts what :mod:`.messages` does not know through cv_bridge, where that is installed and works."""
    module = optional("cv_bridge")
    if module is None or not hasattr(module, "CvBridge"):
        return None
    bridge = module.CvBridge()

    def convert(message: Any) -> NDArray:
        from ..errors import InputError

        try:
            return np.asarray(bridge.imgmsg_to_cv2(message, desired_encoding="rgb8"))
        except (module.CvBridgeError, TypeError, ValueError, AttributeError) as e:
            raise InputError(f"image encoding {message.encoding!r}: cv_bridge says {e}") from e

    return convert


def with_published_time(take: Callable[[bytes, int], None]) -> Callable[..., None]:
    """A subscription callback that calls ``take(message, published_ns)``, the publisher's wall clock.

    Humble does not tell; there it is the time of arrival.
    """
    from rclpy.subscription import Subscription

    if hasattr(Subscription, "CallbackType"):
        return lambda message, info: take(message, int(info["source_timestamp"]))
    return lambda message: take(message, time.time_ns())


def transport_warnings() -> list[str]:
    """What about this process's DDS settings will lose images, with the remedy."""
    import rclpy

    said: list[str] = []
    if "fastrtps" not in rclpy.get_rmw_implementation_identifier():
        return said
    if not os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE"):
        said.append(
            "Fast DDS drops messages above 512 KiB from best-effort publishers; set FASTDDS_DEFAULT_PROFILES_FILE="
            f"{config_path('fastdds.xml')} for this node and the cameras (the launch files do)"
        )
    shm = Path("/dev/shm")
    if shm.is_dir() and (free := shutil.disk_usage(shm).free) < 128 << 20:
        said.append(
            f"/dev/shm has {free >> 20} MiB left, DDS needs 64 MiB per process; in Docker use --ipc=host or --shm-size"
        )
    return said
