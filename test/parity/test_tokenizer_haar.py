# SPDX-License-Identifier: Apache-2.0
"""Patching against the published model's own numbers: both families, odd sizes, frame counts, bfloat16."""

import re

import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.models.haar import TRANSFORMS, Patcher, haar_image, haar_video  # noqa: E402


def test_every_case(tokenizer_vectors):
    description, tensors = tokenizer_vectors("haar")
    for name, case in description["cases"].items():
        kind = "image" if case["dims"] == 2 else "video"
        forward, inverse = TRANSFORMS[kind, case["method"]]
        patched = forward(tensors[f"{name}/input"], case["patch_size"])
        unpatched = inverse(tensors[f"{name}/patched"], case["patch_size"])
        # Half precision has to round exactly as published; single precision only nearly.
        tolerance = 0 if case["dtype"] == "torch.bfloat16" else 2e-6
        for actual, expected in ((patched, "patched"), (unpatched, "unpatched")):
            torch.testing.assert_close(
                actual, tensors[f"{name}/{expected}"], atol=tolerance, rtol=0, msg=name
            )


def test_bands_of_single_pixels(tokenizer_vectors):
    """Impulses name the band order, which differs between the families."""
    _, tensors = tokenizer_vectors("haar")
    names = [
        key.removesuffix("/input") for key in tensors if key.startswith("impulse") and key.endswith("/input")
    ]
    if not names:
        pytest.skip("this set has no impulses")
    for name in names:
        x, expected = tensors[f"{name}/input"], tensors[f"{name}/patched"]
        patch = round(x.shape[-1] / expected.shape[-1])
        assert not (named := re.search(r"_p(\d+)$", name)) or int(named[1]) == patch
        actual = (haar_image if x.ndim == 4 else haar_video)(x, patch)
        torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0, msg=name)


def test_module_undoes_itself():
    x = torch.randn(2, 3, 9, 16, 8)
    there, back = (Patcher("video", "haar", 4, inverse=inverse) for inverse in (False, True))
    assert there(x).shape == (2, 192, 3, 4, 2)
    torch.testing.assert_close(back(there(x)), x, atol=2e-6, rtol=0)
