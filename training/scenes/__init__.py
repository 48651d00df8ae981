# SPDX-License-Identifier: Apache-2.0
"""Procedural worlds and their sensors, all in batched torch: see docs/scenes.md and ``render.py``."""
