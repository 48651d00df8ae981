# SPDX-License-Identifier: Apache-2.0
"""Distillation: what a published-family pipeline makes of the pictures is what a student shall answer.

Sampling is slow (``data.cache`` keeps the sweeps); a frame is always answered alike. Validation stays with what was measured.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from lidargen_ros.models.checkpoints import find_checkpoint
from lidargen_ros.models.published import PublishedPipeline
from lidargen_ros.models.published_options import PublishedOptions

from ..data.dataset import ClipFrame, Failure, FrameDataset


class TaughtFrames:
    """Frames of clips with the teacher's sweeps in place of the measured ones; it knows no intensity.

    Args:
        checkpoint: the teacher, as ``lidargen generate --checkpoint`` takes it.
        steps: of its sampler.
    """

    def __init__(self, frames: FrameDataset, checkpoint: str, steps: int, device: torch.device) -> None:
        self._frames, self.clips, self.items = frames, frames.clips, frames.items
        options = replace(PublishedOptions.corrected(), steps=steps)
        self._teacher = PublishedPipeline.load(checkpoint, str(device), options)
        file = find_checkpoint(checkpoint)
        who = f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns} {steps}"
        self.source = f"taught_{hashlib.sha256(who.encode()).hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> ClipFrame | Failure:
        frame = self._frames[index]
        if isinstance(frame, Failure):
            return frame
        sweep = self._teacher(frame.images, f"{frame.clip}_{frame.frame}").sweep
        return replace(frame, range_map=sweep.range_map, intensity=None, sensor=sweep.sensor)
