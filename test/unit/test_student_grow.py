# SPDX-License-Identifier: Apache-2.0
"""A student that goes on as a larger one says the same at first, and only grows where that is possible."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.errors import CheckpointError, ConfigError  # noqa: E402
from lidargen_ros.models.student import Student, StudentConfig  # noqa: E402
from lidargen_ros.models.student_weights import folded, write_student  # noqa: E402
from training.student.grow import grow  # noqa: E402
from training.student.pieces import read_pieces, write_pieces  # noqa: E402

OLD = StudentConfig(hypotheses=2, full=8, fine=8, patch=16, mid=16, coarse=16, head_width=8)
NEW = replace(OLD, hypotheses=4, previous=True, spread=True, full_blocks=2)


def test_the_grown_student_answers_the_same():
    torch.manual_seed(0)
    old, new = Student(OLD).eval(), Student(NEW).eval()
    new.load_state_dict(grow(old.state_dict(), OLD, NEW))
    pixels, rays, previous = torch.randn(1, 8, 16, 72), torch.randn(1, 8, 16, 72), torch.randn(1, 2, 16, 72)
    with torch.no_grad():
        more = torch.cat([pixels[:, :4], torch.randn_like(pixels), pixels[:, 4:]], 1)
        expected, found = old.estimate(pixels, rays), new.estimate(more, rays, previous)
    for a, b in zip(expected[:3], found[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_same_size_keeps_every_weight():
    weights = Student(NEW).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in grow(weights, NEW, NEW).items())


@pytest.mark.parametrize(("old", "new"), [(NEW, OLD), (OLD, replace(OLD, fine=16))])
def test_it_neither_shrinks_nor_widens(old, new):
    with pytest.raises(ConfigError, match="only hypotheses, previous, spread, full_blocks may grow"):
        grow(Student(old).state_dict(), old, new)


def test_weights_of_a_bundle_cannot_be_trained(tmp_path):
    """Their normalisation is folded away: what grew from them would answer otherwise."""
    (run,) = write_pieces(Student(OLD), OLD, tmp_path)
    assert read_pieces(run)[1] == OLD
    bundle = tmp_path / "bundle.safetensors"
    write_student(folded(Student(OLD)), bundle)
    with pytest.raises(CheckpointError, match=r"weights of a bundle.*give the folder of a training run"):
        read_pieces(bundle)
