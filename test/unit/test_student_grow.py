# SPDX-License-Identifier: Apache-2.0
"""A student that goes on as a larger one says the same at first, and only grows where that is possible."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from lidargen_ros.errors import ConfigError  # noqa: E402
from lidargen_ros.models.student import Student, StudentConfig  # noqa: E402
from lidargen_ros.models.student_weights import folded, write_student  # noqa: E402
from training.student.grow import grow  # noqa: E402
from training.student.pieces import load_student, read_pieces, write_pieces  # noqa: E402
from training.student.unfold import is_folded, unfold  # noqa: E402

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


def test_weights_of_a_bundle_can_be_trained_again(tmp_path):
    """Their normalisation is folded away; with measured statistics they answer the same, in training nearly."""
    torch.manual_seed(0)
    student = Student(OLD).eval()
    for layer in student.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.3)
            layer.running_var.uniform_(0.3, 2.0)
    write_student(folded(student), tmp_path / "student.safetensors")
    weights, config = read_pieces(tmp_path)
    assert is_folded(weights)
    assert not is_folded(student.state_dict())
    frames = [
        SimpleNamespace(pixels=torch.randn(4, 8, 32, 144), rays=torch.randn(4, 8, 32, 144)) for _ in range(3)
    ]
    again = Student(config)
    again.load_state_dict(unfold(weights, config, frames))
    inputs = frames[0].pixels, frames[0].rays
    with torch.no_grad():
        expected = student.estimate(*inputs)
        evaluated, trained = again.eval().estimate(*inputs), again.train().estimate(*inputs)
    for truth, same, near in zip(expected[:3], evaluated[:3], trained[:3], strict=True):
        assert (same - truth).norm() < 5e-3 * truth.norm()  # large weights are stored in half precision
        assert (near - truth).norm() < 0.15 * truth.norm()


def test_half_precision_pieces_take_half_the_room_and_say_the_same(tmp_path):
    torch.manual_seed(0)
    student = Student(NEW).eval()
    sizes = []
    for half in (False, True):
        folder = tmp_path / str(half)
        folder.mkdir()
        sizes.append(sum(path.stat().st_size for path in write_pieces(student, NEW, folder, half=half)))
    assert sizes[1] < 0.6 * sizes[0]
    again = load_student(tmp_path / "True")
    assert all(weight.dtype == torch.float32 for weight in again.parameters())
    depths = 4 * NEW.hypotheses
    pixels, rays = torch.randn(1, depths, 32, 144), torch.randn(1, 8, 32, 144)
    with torch.no_grad():
        torch.testing.assert_close(
            again.estimate(pixels, rays).code, student.estimate(pixels, rays).code, atol=2e-2, rtol=0
        )
