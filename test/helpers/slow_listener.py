# SPDX-License-Identifier: Apache-2.0
"""A subscriber of ``points`` that takes half a second for each cloud, as a process of its own."""

import time

import rclpy
from sensor_msgs.msg import PointCloud2

rclpy.init()
node = rclpy.create_node("slow_listener", enable_rosout=False)
node.create_subscription(PointCloud2, "points", lambda _: time.sleep(0.5), 10)
rclpy.spin(node)
