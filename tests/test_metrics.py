"""The metrics against arithmetic done by hand."""

import math

import numpy as np
import pytest
import torch

from lwm_env.errors import InvalidInput
from lwm_training import metrics
from lwm_training.event_metrics import Happenings, best_threshold, count_ends, count_rewards, match, outcomes
from lwm_training.scroll import seen_pixels
from lwm_training.tally import Tally, interval, join, resampling


def flat(value: int, batch: int = 1, side: int = 16) -> torch.Tensor:
    return torch.full((batch, side, side, 3), value, dtype=torch.uint8)


def noise(batch: int = 1, side: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, generator=generator)


# -- frames ------------------------------------------------------------------------------------------------------------


def test_psnr_is_48_13_decibels_when_every_value_is_off_by_one():
    total, count = metrics.squared_error(flat(100), flat(101))

    assert (total.item(), count.item()) == (768, 768)
    assert metrics.psnr(total.item() / count.item()) == pytest.approx(20 * math.log10(255))
    assert metrics.psnr(0.0) == math.inf and math.isnan(metrics.psnr(math.nan))


def test_squared_error_does_not_wrap_around():
    total, count = metrics.squared_error(flat(0), flat(255))

    assert total / count == 255**2 and metrics.psnr(255.0**2) == 0


def test_squared_error_counts_only_the_mask():
    predicted = flat(10)
    predicted[0, 0, 0] = 14
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 0, :2] = True

    total, count = metrics.squared_error(predicted, flat(10), mask)

    assert (total.item(), count.item()) == (3 * 16, 3 * 2)


def test_ssim_of_flat_frames_is_the_luminance_term():
    expected = (2 * 100 * 150 + 6.5025) / (100**2 + 150**2 + 6.5025)

    assert metrics.ssim(flat(100), flat(150)).item() == pytest.approx(expected, rel=1e-12)


def test_ssim_of_one_window_is_the_formula():
    x, y = noise(side=11), noise(side=11, seed=1)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2

    channels = []
    for a, b in zip(x[0].double().numpy().T, y[0].double().numpy().T, strict=True):
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
        luminance = (2 * mean_a * mean_b + 6.5025) / (mean_a**2 + mean_b**2 + 6.5025)
        channels.append(luminance * (2 * covariance + 58.5225) / (var_a + var_b + 58.5225))

    assert metrics.ssim(x, y).item() == pytest.approx(np.mean(channels), abs=1e-12)


def test_ssim_of_equal_frames_is_one():
    assert metrics.ssim(noise(3), noise(3)).tolist() == [1.0, 1.0, 1.0]


def test_frames_that_do_not_fit_are_told():
    with pytest.raises(InvalidInput, match="differ in shape"):
        metrics.squared_error(flat(0, 1), flat(0, 2))
    with pytest.raises(InvalidInput, match="float32"):
        metrics.ssim(flat(0).float(), flat(0))
    with pytest.raises(InvalidInput, match="at least 11"):
        metrics.ssim(flat(0, side=10), flat(0, side=10))


def test_sharpness_of_a_single_white_pixel():
    frames = flat(0, 2, side=5)
    frames[0, 2, 2] = 255

    assert metrics.sharpness(frames).tolist() == pytest.approx([(4**2 + 4 * 1) * 255**2 / 9, 0])


def test_colour_distance_is_the_share_of_other_pixels():
    half = flat(0)
    half[0, :8, :, 0] = 255  # red
    counts = metrics.colour_counts(torch.cat([half, flat(0), flat(31), flat(32)]))

    assert counts.sum(1).tolist() == [256] * 4
    assert metrics.colour_distance(counts[0], counts[1]) == 0.5
    assert metrics.colour_distance(counts[1], counts[2]) == 0  # the same bin of 32 levels
    assert metrics.colour_distance(counts[1], counts[3]) == 1
    assert math.isnan(metrics.colour_distance(counts[0], np.zeros(512)))


# -- pooling -----------------------------------------------------------------------------------------------------------


def test_a_tally_pools_before_it_divides():
    one = Tally((1, 4), np.array([[0.0, 5]]), np.array([[1.0, 1]]))
    other = Tally((1, 4), np.array([[90.0, 0]]), np.array([[2.0, 0]]))

    tally = join([one, other])

    assert tally.ratio().tolist() == [30, 5]
    assert tally.at([4]).ratio().tolist() == [5]
    assert tally.ratio(np.array([[1.0, 0], [0, 1]]))[:, 0].tolist() == [0, 45]


def test_an_interval_has_no_width_when_clips_agree_and_no_value_without_clips():
    tally = Tally((1, 2), np.array([[2.0, 0]] * 5), np.array([[1.0, 0]] * 5))

    values = interval(tally.ratio, resampling(5, seed=0))

    assert values[0].tolist() == [2, 2, 2] and np.isnan(values[1]).all()


def test_an_interval_covers_about_95_percent_of_the_resampled_means():
    clips = np.random.default_rng(0).normal(10, 2, (400, 1))
    tally = Tally((1,), clips, np.ones((400, 1)))

    value, low, high = interval(tally.ratio, resampling(400, seed=0))[0]

    assert value == pytest.approx(clips.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * 2 / 20, rel=0.1)


# -- events ------------------------------------------------------------------------------------------------------------


def happenings(predicted: list[int | None], real: list[int | None], length: int = 12) -> Happenings:
    """Ends at the given steps, episodes that are over after them, no rewards."""
    probs, ends = np.zeros((len(real), length)), np.zeros((len(real), length), bool)
    valid = np.ones((len(real), length), bool)
    for clip, (dreamed, true) in enumerate(zip(predicted, real, strict=True)):
        if dreamed is not None:
            probs[clip, dreamed:] = 0.7
        if true is not None:
            ends[clip, true], valid[clip, true + 1 :] = True, False
    rewards = np.zeros((len(real), length, 1))
    return Happenings(probs, rewards, rewards.copy(), ends, valid)


def test_matching_uses_every_event_once():
    assert match([3], [5]) == 1 and match([3], [6]) == 0
    assert match([4, 5, 6], [5]) == 1
    assert match([1, 4], [2, 3]) == 2


def test_terminations_by_hand():
    counts = count_ends(happenings([7, 8, 1, 3, None, None], [5, 5, 5, None, None, 5]), threshold=0.5)

    assert counts.found.tolist() == [1, 0, 0, 0, 0, 0]
    assert counts.false.tolist() == [0, 0, 1, 1, 0, 0]  # the 8 comes when nobody can judge it any more
    assert counts.missed.tolist() == [0, 1, 1, 0, 0, 1]
    assert counts.frames.tolist() == [8, 8, 2, 4, 12, 8]
    assert counts.scores().tolist() == pytest.approx([1 / 3, 1 / 4, 2 / 7, 1000 * 2 / 42])


def test_scores_of_nothing_are_not_numbers():
    precision, recall, f1, false = count_ends(happenings([None], [None]), 0.5).scores()

    assert math.isnan(precision) and math.isnan(recall) and math.isnan(f1) and false == 0


def test_rewards_count_until_the_first_dreamed_end():
    given = happenings([6], [None])
    given.rewards[0, [2, 6, 8], 0] = 10
    given.real_rewards[0, [4, 9], 0] = 10

    counts = count_rewards(given, threshold=0.5, neutral=0)

    assert (counts.found.sum(), counts.false.sum(), counts.missed.sum()) == (1, 1, 1)
    assert counts.frames.tolist() == [7]


def test_what_has_come_of_a_clip_stays_and_ends_with_its_end():
    """The dream pays at once and ends at 6, where a reward of 8 never comes; the real clip pays at 4 and ends at 5."""
    given = happenings([6], [5])
    given.rewards[0, [2, 8], 0] = 10
    given.real_rewards[0, [4, 9], 0] = 10

    came = {name: np.flatnonzero(values[0]).tolist() for name, values in outcomes(given, 0.5, 0).items()}

    assert came["rewarded"] == list(range(2, 12)) and came["rewarded_real"] == list(range(4, 12))
    assert came["ended"] == list(range(6, 12)) and came["ended_real"] == list(range(5, 12))
    given.rewards[0, 2, 0], given.real_rewards[0, 4, 0] = 0, 0
    assert not any(outcomes(given, 0.5, 0)[name].any() for name in ("rewarded", "rewarded_real"))


def test_a_reward_of_another_value_or_player_is_not_the_same_event():
    given = happenings([None], [None])
    given = Happenings(given.end_probs, np.zeros((1, 12, 2)), np.zeros((1, 12, 2)), given.real_ends, given.valid)
    given.rewards[0, 3] = given.real_rewards[0, 3] = (1, -1)
    assert count_rewards(given, 0.5, 0).found.tolist() == [2]

    given.rewards[0, 3] = (-1, 1)
    assert count_rewards(given, 0.5, 0).found.tolist() == [0]


def test_what_follows_the_end_of_the_real_episode_is_not_a_real_event():
    given = happenings([None], [4])
    given.real_rewards[0, 9] = 10

    assert count_rewards(given, 0.5, 0).missed.tolist() == [0]


def test_the_best_threshold_separates_the_true_end_from_the_false():
    given = happenings([5, 3], [5, None])
    given.end_probs[0] *= 0.9 / 0.7
    given.end_probs[1] *= 0.3 / 0.7

    threshold, f1 = best_threshold(given)

    assert 0.3 < threshold < 0.9 and f1 == 1
    assert math.isnan(best_threshold(happenings([None], [None]))[1])


# -- pixels already seen -----------------------------------------------------------------------------------------------


def scroll(places: list[tuple[int, int]], side: int = 32) -> torch.Tensor:
    """uint8 (1, T, side, side, 3): views of one picture at these rows and columns."""
    picture = noise(side=160)[0].float()
    soft = torch.nn.functional.avg_pool2d(picture.movedim(-1, 0)[None], 5, 1, 2)[0].movedim(0, -1)  # no game is noise
    picture = ((soft - 127.5) * 4 + 127.5).clamp(0, 255).to(torch.uint8)
    return torch.stack([picture[y : y + side, x : x + side] for y, x in places])[None]


def test_pixels_seen_on_a_scroll_are_those_that_the_context_covered():
    places = [(60, 60), (60, 62), (62, 66), (60, 72), (60, 80), (55, 71), (60, 62)]  # the first two are the context

    seen = seen_pixels(scroll(places), context=2)

    covered = torch.zeros(160, 160, dtype=torch.bool)
    covered[60:92, 60:94] = True
    expected = torch.stack([covered[y : y + 32, x : x + 32] for y, x in places])
    assert seen.shifts[0].tolist() == [[y - 60, x - 60] for y, x in places]
    assert torch.equal(seen.mask[0, 2:], expected[2:])


def test_a_slow_scroll_does_not_hide_in_the_rounding():
    wide = scroll([(40, 40)], side=80)[0].movedim(-1, 1).float()
    frames = [torch.nn.functional.avg_pool2d(wide[..., x : x + 66], 2).movedim(1, -1)[:, :32] for x in range(13)]

    shifts = seen_pixels(torch.stack(frames, 1).to(torch.uint8), context=1).shifts[0, :, 1]

    assert (shifts - torch.arange(13) / 2).abs().max() <= 1


def test_a_clip_that_cuts_to_another_scene_is_lost_from_there_on():
    frames = scroll([(60, 60)] * 4)
    frames[0, 2] = noise(side=32, seed=5)[0]

    seen = seen_pixels(frames, context=1)

    assert seen.lost[0].tolist() == [False, False, True, True]
    assert seen.mask[0, 1].all() and not seen.mask[0, 2:].any()


def test_a_camera_that_leaves_the_map_is_lost_from_there_on():
    seen = seen_pixels(scroll([(60, 6 * step) for step in range(20)], side=16), context=1)

    assert not seen.lost[0, 5] and seen.lost[0, -1]  # the map reaches four screens of 16 pixels
    assert seen.shifts.abs().max() <= 4 * 16
