# SPDX-License-Identifier: Apache-2.0
"""LiDAR topics for recorded drives: ``lidargen synthesize``.

    plan (cameras, calibration, slices) -> per slice: match, decode, generate, pack -> one part -> parts joined

A slice is a span of recording time. Its part depends on the bag, the model and the options alone, so it does not
matter which worker makes it, when, or how often. Nothing here needs ROS.
"""
