# SPDX-License-Identifier: Apache-2.0
"""The one training loop: ranks, averages of weights, checkpoints, logs; it knows recipes (``training/recipe.py``) only."""
