# SPDX-License-Identifier: Apache-2.0
"""Sizes of the multi-view diffusion transformer; one dataclass describes any member of the family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class DiTConfig:
    """Network sizes. The defaults are those of Cosmos-Transfer-LidarGen (7.2 billion parameters)."""

    width: int = 4096
    heads: int = 32
    blocks: int = 28
    adaln_width: int = 256  # rank of the shared low-rank modulation
    text_width: int = 1024
    latent_channels: int = 16
    patch: int = 2
    views: int = 4  # slots: the LiDAR, then the cameras
    view_rows: int = 4  # rows of the view table; larger view indices use the last row
    mlp_ratio: int = 4
    max_positions: int = 128  # length of the position vector stored in checkpoints

    def __post_init__(self) -> None:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ConfigError(
                f"DiT width {self.width} does not split into {self.heads} heads of even width: change one"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def view_width(self) -> int:
        """Width of the vector that tells slots apart (one more than there are views)."""
        return self.views + 1

    @property
    def input_channels(self) -> int:
        """Latent, condition mask, padding mask, view vector."""
        return self.latent_channels + 2 + self.view_width

    @classmethod
    def from_published(cls, network: Mapping[str, object]) -> DiTConfig:
        """From the option names that the published model's configuration uses."""

        def number(key: str) -> int:
            return int(float(str(network[key])))

        return cls(
            width=number("model_channels"),
            heads=number("num_heads"),
            blocks=number("num_blocks"),
            adaln_width=number("adaln_lora_dim"),
            text_width=number("crossattn_emb_channels"),
            latent_channels=number("in_channels"),
            patch=number("patch_spatial"),
            views=number("n_views"),
            view_rows=number("n_views_emb"),
            mlp_ratio=number("mlp_ratio"),
            max_positions=number("max_frames"),
        )

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> DiTConfig:
        """From the shapes of a checkpoint (key names with the prefix ``net.``).

        Raises:
            CheckpointError: a tensor that tells a size is missing.
        """
        first = "net.blocks.block0.blocks"

        def shape(key: str) -> tuple[int, ...]:
            if key not in shapes:
                raise CheckpointError(f"checkpoint has no {key}: it does not hold a multi-view DiT")
            return shapes[key]

        width, features = shape("net.x_embedder.proj.1.weight")
        rows, view_width = shape("net.view_embeddings.weight")
        head_width = shape(f"{first}.0.block.attn.to_q.1.weight")[0]
        numbers = {k.split(".")[2] for k in shapes if k.startswith("net.blocks.block")}
        # features = (latent + 2 + view vector) * patch^2 and outputs = latent * patch^2
        outputs = shape("net.final_layer.linear.weight")[0]
        patch_area, rest = divmod(features - outputs, 2 + view_width)
        patch = round(patch_area**0.5)
        if rest or patch * patch != patch_area:
            raise CheckpointError(
                f"patch embedding of {features} and output of {outputs} features do not belong together"
            )
        return cls(
            width=width,
            heads=width // head_width,
            blocks=len(numbers),
            adaln_width=shape(f"{first}.0.adaLN_modulation.1.weight")[0],
            text_width=shape(f"{first}.1.block.attn.to_k.0.weight")[1],
            latent_channels=outputs // patch_area,
            patch=patch,
            views=view_width - 1,
            view_rows=rows,
            mlp_ratio=shape(f"{first}.2.block.layer1.weight")[0] // width,
            max_positions=shapes.get("net.pos_embedder.seq", (128,))[0],
        )
