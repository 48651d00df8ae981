# SPDX-License-Identifier: Apache-2.0
"""Plays a bag with ``--clock`` beside the node, and records what the node makes of it.

    ros2 launch lidargen_ros replay.launch.py bag:=/data/drive record:=/data/drive_lidar

Ends when the bag has been played. Every argument of lidargen.launch.py may be given as well.
"""

from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription
from lidargen_ros.ros import compat

OUTPUTS = ("points", "range_image", "intensity_image")
LAST_SWEEPS_S = 5.0
"""The node may still work on the last frames when the player has ended."""


def generate_launch_description() -> LaunchDescription:
    """Arguments, the node, the player and the recorder."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "bag", description="rosbag2 folder, .mcap, .db3, or a ROS 1 .bag (player:=lidargen)."
            ),
            DeclareLaunchArgument("rate", default_value="1.0", description="Bag seconds per second."),
            DeclareLaunchArgument(
                "player",
                default_value="ros2",
                choices=["ros2", "lidargen"],
                description="ros2: `ros2 bag play`; lidargen: own player, which waits for the node and drops nothing.",
            ),
            DeclareLaunchArgument(
                "record", default_value="", description="rosbag2 folder to make; empty: none."
            ),
            DeclareLaunchArgument(
                "play_args", default_value="", description="More arguments for the player."
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(Path(__file__).with_name("lidargen.launch.py"))),
                launch_arguments={"use_sim_time": "true"}.items(),
            ),
            OpaqueFunction(function=_start),
        ]
    )


def _start(context: object) -> list[object]:
    def value(name: str) -> str:
        return str(LaunchConfiguration(name).perform(context))

    env = compat.tuning()
    outputs = [(topic, value(topic)) for topic in OUTPUTS if value(topic) != topic]
    extra = value("play_args").split()
    player: ExecuteProcess
    if value("player") == "lidargen":
        front = value("front_image")
        reference = ["--reference", front] if front.startswith("/") else []
        waiting = ["--window", "1", "--subscribers", "2" if value("record") else "1"]
        player = Node(
            package="lidargen_ros",
            executable="lidargen_player",
            namespace=value("namespace"),
            arguments=[value("bag"), "--rate", value("rate"), *reference, *waiting, *extra],
            remappings=[*outputs, ("lidargen/statistics", f"{value('name')}/statistics")],
            additional_env=env,
            output="screen",
        )
    else:
        # The default read-ahead of 1000 messages is 2.8 GB of raw images.
        options = ["--clock", "--rate", value("rate"), "--read-ahead-queue-size", "100"]
        player = ExecuteProcess(
            cmd=["ros2", "bag", "play", value("bag"), *options, *extra], additional_env=env, output="screen"
        )
    end = TimerAction(
        period=LAST_SWEEPS_S, actions=[EmitEvent(event=Shutdown(reason="the bag has been played"))]
    )
    actions: list[object] = [
        player,
        RegisterEventHandler(OnProcessExit(target_action=player, on_exit=[end])),
    ]
    if value("record"):
        actions.append(
            Node(
                package="lidargen_ros",
                executable="lidargen_recorder",
                namespace=value("namespace"),
                arguments=[value("record")],
                remappings=outputs,
                additional_env=env,
                output="screen",
            )
        )
    return actions
