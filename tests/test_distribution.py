"""Distances of sets of features against arithmetic done by hand, and I3D with a stand-in of its interface."""

import numpy as np
import pytest
import torch

from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput
from lwm_training.distribution import against_floor, frechet, kernel_distance
from lwm_training.i3d import I3D


def sample(mean: list[float], covariance: list[list[float]], count: int = 50) -> np.ndarray:
    """Points whose own mean and covariance are exactly these."""
    points = np.random.default_rng(0).normal(size=(count, len(mean)))
    points -= points.mean(0)
    points = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points, rowvar=False))).T
    return points @ np.linalg.cholesky(np.array(covariance)).T + mean


# -- distances ---------------------------------------------------------------------------------------------------------


def test_frechet_of_gaussians_along_the_axes_is_the_difference_of_means_and_deviations():
    x, y = sample([0, 0], [[1, 0], [0, 4]]), sample([3, 4], [[9, 0], [0, 1]])

    assert frechet(x, y) == pytest.approx(25 + (1 - 3) ** 2 + (2 - 1) ** 2)


def test_frechet_of_covariances_that_do_not_commute_is_the_closed_form_of_two_dimensions():
    a, b = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 5.0]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))  # trace of (AB)^½

    found = frechet(sample([0, 0], a.tolist()), sample([1, 0], b.tolist()))

    assert found == pytest.approx(1 + 4 + 6 - 2 * root)


def test_frechet_of_a_set_with_itself_is_zero_also_with_fewer_points_than_dimensions():
    x = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)

    assert frechet(x, x) == pytest.approx(0, abs=1e-4)
    assert frechet(x, x + 2) == pytest.approx(4 * 40)


def test_kernel_distance_is_the_unbiased_sum_of_cubes():
    x, y = np.array([[1.0], [-1.0]]), np.array([[0.0], [0.0]])

    assert kernel_distance(x, y) == pytest.approx(0 + 1 - 2 * (1 + 1 + 1 + 1) / 4)
    assert kernel_distance(np.array([[2.0], [2.0]]), y) == pytest.approx(125 + 1 - 2)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    rng = np.random.default_rng(0)

    same = [kernel_distance(*rng.normal(size=(2, 20, 4))) for _ in range(300)]
    other = [kernel_distance(rng.normal(size=(20, 4)), rng.normal(1, size=(20, 4))) for _ in range(300)]

    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(300) < np.mean(other)


def test_sets_that_do_not_fit_are_told():
    for x, y in ((np.zeros((1, 3)), np.zeros((5, 3))), (np.zeros((5, 3)), np.zeros((5, 4)))):
        with pytest.raises(InvalidInput, match="at least two"):
            frechet(x, y)


# -- against the floor -------------------------------------------------------------------------------------------------


def test_dreams_that_equal_the_real_clips_are_as_far_as_the_floor_and_others_are_farther():
    real = np.random.default_rng(0).normal(size=(40, 3, 4))

    equal, shifted = (against_floor(dreamed, real, frechet, seed=0) for dreamed in (real, real + 1))

    assert equal.dreamed == equal.floor > 0 and equal.num_clips == 40
    assert shifted.floor == equal.floor and shifted.dreamed == pytest.approx(equal.dreamed + 4, abs=0.8)


def test_clips_without_a_descriptor_are_left_out_on_both_sides():
    rng = np.random.default_rng(0)
    real, dreamed = rng.normal(size=(2, 11, 2, 3))
    real[0], dreamed[1], real[2, 0] = np.nan, np.nan, np.nan

    found = against_floor(dreamed, real, kernel_distance, seed=0)

    assert found.num_clips == 8 and np.isfinite([found.dreamed, found.floor]).all()  # 9 are left, in equal halves
    assert against_floor(dreamed[:5], real[:5], frechet, seed=0) is None


# -- I3D ---------------------------------------------------------------------------------------------------------------


class StandIn(torch.nn.Module):
    """Called as I3D is; its features are the mean of each channel, and the number of frames."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert not rescale and not resize and return_features
        return torch.cat([x.mean([2, 3, 4]), torch.full((len(x), 1), float(x.shape[2] * x.shape[3]))], 1)


class Another(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_i3d_is_given_square_videos_between_minus_one_and_one(tmp_path):
    torch.jit.script(StandIn()).save(str(tmp_path / "i3d.pt"))
    clips = torch.zeros(9, 16, 8, 12, 3, dtype=torch.uint8)
    clips[..., 0] = 255

    features = I3D(tmp_path / "i3d.pt")(clips)

    assert features == pytest.approx(np.tile([1.0, -1.0, -1.0, 16 * 224], (9, 1)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_file_that_is_no_i3d_is_told(tmp_path):
    torch.jit.script(Another()).save(str(tmp_path / "other.pt"))
    (tmp_path / "text.pt").write_text("not a network")

    with pytest.raises(ConfigMismatch, match="called as I3D is"):
        I3D(tmp_path / "other.pt")(torch.zeros(2, 16, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(CorruptFile, match="no TorchScript file"):
        I3D(tmp_path / "text.pt")
    with pytest.raises(CorruptFile, match="no file"):
        I3D(tmp_path / "absent.pt")
