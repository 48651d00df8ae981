# SPDX-License-Identifier: Apache-2.0
"""Who may use which world: the seed ranges that keep training, evaluation and the sample drive apart."""

SAMPLE_DRIVE_SEED = 1611
"""The one world of ``samples/sample_drive``; never trained or evaluated on."""

EVALUATION_SEEDS = range(100_000, 200_000)
"""Worlds for validation and for the figures in a bundle's ``metrics.json``; never trained on."""

TRAINING_SEED_START = 1_000_000
"""Training takes seeds from here upwards, each world once."""
