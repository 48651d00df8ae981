# SPDX-License-Identifier: Apache-2.0
"""Starts the node, with the DDS and malloc settings that large messages need, and a viewer on request.

    ros2 launch lidargen_ros lidargen.launch.py bundle:=nano front_image:=/cam/front/image_raw viz:=rviz

Arguments that are left empty leave the value to ``params_file``.
"""

from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription
from lidargen_ros.resources import config_path
from lidargen_ros.ros import compat

TOPICS = {
    "front_image": ("front/image", "Front camera, raw; TOPIC/compressed is found by itself."),
    "rear_left_image": ("rear_left/image", "Rear left camera."),
    "rear_right_image": ("rear_right/image", "Rear right camera."),
    "front_camera_info": ("front/camera_info", "CameraInfo, where the parameter calibration asks for it."),
    "rear_left_camera_info": ("rear_left/camera_info", "The same, rear left."),
    "rear_right_camera_info": ("rear_right/camera_info", "The same, rear right."),
    "points": ("points", "Cloud that comes out."),
    "range_image": ("range_image", "Range image that comes out."),
    "intensity_image": ("intensity_image", "Intensity image that comes out."),
    "preview": ("preview", "JPEG of what the cameras saw and what was made of it."),
}
PARAMETERS = {
    "bundle": "Model bundle: a shipped name or a folder.",
    "engine": "Engine that runs it.",
    "rig": "Rig: a shipped name or a YAML file.",
    "calibration": "Where intrinsics and poses come from: rig, camera_info, tf.",
    "frame_id": "Frame of the output.",
    "point_type": "Layout of a point: xyzi, xyzirc, xyzircaedt, velodyne, ouster.",
}


def generate_launch_description() -> LaunchDescription:
    """All arguments, then the node."""
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of node and topics."),
        DeclareLaunchArgument("name", default_value="lidargen", description="Name of the node."),
        DeclareLaunchArgument(
            "params_file", default_value=str(config_path("lidargen.yaml")), description="Parameters as YAML."
        ),
        DeclareLaunchArgument(
            "use_sim_time", default_value="false", choices=["true", "false"], description="Follow /clock."
        ),
        DeclareLaunchArgument(
            "autostart",
            default_value="true",
            choices=["true", "false"],
            description="Configure and activate at start; false waits for a lifecycle manager.",
        ),
        DeclareLaunchArgument(
            "enclave", default_value="", description="SROS 2 enclave of the node; see docs/security.md."
        ),
        DeclareLaunchArgument(
            "tuned",
            default_value="true",
            choices=["true", "false"],
            description="Large shared-memory segment for Fast DDS, and malloc settings. Cameras need it, too.",
        ),
        DeclareLaunchArgument(
            "viz", default_value="none", choices=["none", "rviz", "foxglove"], description="Viewer to start."
        ),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error."),
        *(DeclareLaunchArgument(n, default_value="", description=text) for n, text in PARAMETERS.items()),
        *(DeclareLaunchArgument(n, default_value=t, description=text) for n, (t, text) in TOPICS.items()),
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])


def _start(context: object) -> list[object]:
    def value(name: str) -> str:
        return str(LaunchConfiguration(name).perform(context))

    namespace = value("namespace")
    overrides: dict[str, object] = {name: value(name) for name in PARAMETERS if value(name)}
    overrides.update({name: value(name) == "true" for name in ("use_sim_time", "autostart")})
    remaps = [(topic, value(name)) for name, (topic, _) in TOPICS.items() if value(name) != topic]
    enclave = ["--enclave", value("enclave")] if value("enclave") else []
    actions: list[object] = [
        Node(
            package="lidargen_ros",
            executable="lidargen_node",
            name=value("name"),
            namespace=namespace,
            parameters=[value("params_file"), overrides],
            remappings=remaps,
            additional_env=compat.tuning() if value("tuned") == "true" else {},
            arguments=["--ros-args", "--log-level", value("log_level"), *enclave],
            output="screen",
        )
    ]
    if value("viz") == "rviz":
        seen = {topic: f"/{namespace}/{topic}".replace("//", "/") for topic in ("points", "range_image")}
        seen.update({topic: target for topic, target in remaps if topic in seen and target.startswith("/")})
        actions.append(
            Node(
                package="rviz2",
                executable="rviz2",
                arguments=["-d", str(config_path("lidargen.rviz"))],
                remappings=[(f"/{topic}", target) for topic, target in seen.items() if target != f"/{topic}"],
                additional_env=compat.tuning() if value("tuned") == "true" else {},
            )
        )
    elif value("viz") == "foxglove":
        layout = config_path("foxglove_layout.json")
        actions.append(
            LogInfo(msg=f"Foxglove: connect to ws://localhost:8765 and import the layout {layout}")
        )
        actions.append(Node(package="foxglove_bridge", executable="foxglove_bridge", output="screen"))
    return actions
