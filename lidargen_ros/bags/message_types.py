# SPDX-License-Identifier: Apache-2.0
"""Names of the message types that are looked for in bags, as rosbags spells them for ROS 1 and 2."""

RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
INFO, CLOUD = "sensor_msgs/msg/CameraInfo", "sensor_msgs/msg/PointCloud2"
TF = ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage")
ODOMETRY = "nav_msgs/msg/Odometry"
STRING = "std_msgs/msg/String"
