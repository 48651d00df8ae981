# SPDX-License-Identifier: Apache-2.0
"""Single tokenizer layers against the published model's own numbers: odd sizes and several frame counts."""

import re

import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.models import tokenizer_image as image  # noqa: E402
from lidargen_ros.models import tokenizer_video as video  # noqa: E402
from lidargen_ros.models.tokenizer_config import NO, SPACE, SPACE_TIME, TIME  # noqa: E402
from lidargen_ros.models.tokenizer_network import ResBlock  # noqa: E402

STEPS = {("0", "0"): NO, ("1", "0"): SPACE, ("0", "1"): TIME, ("1", "1"): SPACE_TIME}


def build(kind, name, weights, channels, groups):
    """The layer of that published class, sized by its weights."""
    if kind == "ResnetBlock":
        cout, cin = weights["conv1.weight"].shape[:2]
        return ResBlock(image.ImageLayers(groups), cin, cout)
    if kind == "AttnBlock":
        return image.Attention(channels, groups)
    if kind == "Downsample":
        return image.Downsample(channels)
    if kind == "Upsample":
        return image.Upsample(channels)
    if kind == "CausalConv3d":
        cout, cin, *kernel = weights["conv3d.weight"].shape
        return video.CausalConv(cin, cout, tuple(kernel), padding=kernel[1] // 2)
    if kind == "CausalResnetBlockFactorized3d":
        cout, cin = weights["conv1.0.conv3d.weight"].shape[:2]
        return ResBlock(video.VideoLayers(), cin, cout)
    if kind in ("CausalAttnBlock", "CausalTemporalAttnBlock"):
        return video.Attention(channels, over_time="Temporal" in kind)
    step = STEPS[re.search(r"_s(\d)t(\d)$", name).groups()]
    return {
        "CausalHybridDownsample3d": video.HybridDownsample,
        "CausalHybridUpsample3d": video.HybridUpsample,
    }[kind](channels, step)


@torch.no_grad()
def worst(layer, weights, pairs):
    """Largest relative difference over the layer's inputs."""
    layer.load_state_dict(weights, strict=True)
    differences = []
    for x, expected in pairs:
        actual = layer(x)
        assert actual.shape == expected.shape
        differences.append(((actual - expected).norm() / expected.norm()).item())
    return max(differences)


def test_every_layer(tokenizer_vectors):
    description, tensors = tokenizer_vectors("layers")
    for name, entry in description["layers"].items():
        prefix = f"{name}/w/"
        weights = {
            key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
        }
        inputs = [key for key in tensors if key.startswith(f"{name}/x")]
        pairs = [(tensors[key], tensors[key.replace("/x", "/y")]) for key in inputs]
        assert pairs, name
        channels = pairs[0][0].shape[1]
        # Weights do not tell the group count and neither does the description: one divisor must fit, and only one.
        norms = [value.numel() for key, value in weights.items() if re.fullmatch(r"norm\d?\.weight", key)]
        counts = [g for g in range(1, channels + 1) if all(n % g == 0 for n in norms)] if norms else [1]
        results = {g: worst(build(entry["cls"], name, weights, channels, g), weights, pairs) for g in counts}
        fitting = [g for g, difference in results.items() if difference <= 1e-4]
        assert len(fitting) == 1, f"{name}: {results}"
