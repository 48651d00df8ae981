# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the parity tests. Sizes come from the vectors' own config, so any set of the format works."""

import json
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from lidargen_ros.models.dit_config import DiTConfig  # noqa: E402
from lidargen_ros.models.dit_denoiser import DiffusionModel  # noqa: E402


@pytest.fixture
def dit_config(golden) -> dict:
    return json.loads(golden("dit/config.json").read_text())


@pytest.fixture
def dit_vectors(golden) -> Callable[[str], dict]:
    """``dit_vectors("denoise")``: the tensors of that file."""
    return lambda name: load_file(golden(f"dit/{name}.safetensors"))


@pytest.fixture
def dit_model(dit_config, golden) -> Callable[..., DiffusionModel]:
    """The small model with the vectors' weights, loaded strictly."""

    def build(dtype=torch.float32, rounded=False) -> DiffusionModel:
        model = DiffusionModel(DiTConfig.from_published(dit_config["network"]), rounded_positions=rounded)
        model.load_state_dict(load_file(golden("dit/weights.safetensors")), strict=True)
        return model.to(dtype).eval()

    return build


@pytest.fixture
def tokenizer_vectors(golden) -> Callable[[str], tuple[dict, dict]]:
    """``tokenizer_vectors("haar")``: that file's description and its tensors."""

    def read(name: str) -> tuple[dict, dict]:
        description = json.loads(golden(f"tokenizer/{name}.json").read_text())
        return description, load_file(golden(f"tokenizer/{name}.safetensors"))

    return read
