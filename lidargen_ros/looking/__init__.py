# SPDX-License-Identifier: Apache-2.0
"""Looking at bags and bundles: ``lidargen info``, ``lidargen picture``, ``lidargen view``. Nothing here needs ROS."""
