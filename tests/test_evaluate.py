"""The evaluation with fakes whose figures are known, and its report."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lwm_env.belief import Output
from lwm_env.engine import Engine
from lwm_env.errors import InvalidInput, StorageError
from lwm_env.spec import WorldSpec
from lwm_env.world_model import WorldModel
from lwm_training import evaluate
from lwm_training.clips import Clips
from lwm_training.held_out import HeldOut, from_clips
from lwm_training.metrics import psnr
from lwm_training.report import Protocol, Report, as_table, build
from lwm_training.report_page import check_output, write_report
from lwm_training.rollout import Sampling, roll

CONTEXT, STEPS, NUM_CLIPS = 3, 6, 5


@pytest.fixture
def held_out() -> HeldOut:
    """Noise; clip 0 ends with a reward after the third step."""
    rng = np.random.default_rng(0)
    length = CONTEXT - 1 + STEPS
    clips = Clips(
        observations=rng.integers(0, 256, (NUM_CLIPS, length + 1, 16, 16, 3), np.uint8),
        actions=rng.integers(0, 3, (NUM_CLIPS, length, 1)),
        rewards=np.zeros((NUM_CLIPS, length, 1), np.float32),
        terminations=np.zeros((NUM_CLIPS, length), bool),
        valid=np.ones((NUM_CLIPS, length), bool),
    )
    clips.rewards[0, CONTEXT + 1], clips.terminations[0, CONTEXT + 1], clips.valid[0, CONTEXT + 2 :] = 10, True, False
    return HeldOut(clips, CONTEXT, clips.actions)


class LosslessTokenizer:
    def encode(self, x):
        return x

    quantize = encode
    decode = encode


class Fake:
    """Knows the clips: dreams what really happens, or goes on showing the last frame."""

    tokenizer, reward_values, noise_dim = LosslessTokenizer(), torch.zeros(1), 1

    def __init__(self, held_out: HeldOut, spec: WorldSpec, perfect: bool) -> None:
        self.clips, self.context, self.spec, self.perfect = held_out.clips, held_out.context, spec, perfect

    def start(self, frames, actions):
        own = self.clips.observations[:, self.context - 1]
        rows = [int(np.flatnonzero((own == frame.numpy()).all((1, 2, 3)))[0]) for frame in frames[:, -1]]
        return {"row": torch.tensor(rows), "step": torch.full((len(rows),), self.context - 1)}

    def step(self, state, action, noise=None, temperature=0.0):
        rows, steps = state["row"].numpy(), state["step"].numpy().clip(max=self.clips.valid.shape[1] - 1)
        frames = self.clips.observations[rows, steps + 1 if self.perfect else self.context - 1]
        output = Output(
            frame=torch.from_numpy(frames),
            reward=torch.from_numpy(self.clips.rewards[rows, steps]) * self.perfect,
            reward_probs=torch.zeros(len(rows), 1, 1),
            terminated_prob=torch.from_numpy(self.clips.terminations[rows, steps]).float() * self.perfect,
            surprise=torch.zeros(len(rows)),
        )
        return {"row": state["row"], "step": state["step"] + 1}, output


def measure(held_out: HeldOut, spec: WorldSpec, perfect: bool) -> evaluate.Measured:
    return evaluate.measure(Fake(held_out, spec, perfect), held_out, Sampling(), lambda _: None)


def report_of(measured: evaluate.Measured, horizon: int = STEPS) -> Report:
    protocol = Protocol(
        source="x:y", split="validation", policy="sticky", seed=0, num_clips=NUM_CLIPS, context=CONTEXT,
        horizon=horizon, temperature=0.0, termination_threshold=0.5,
    )  # fmt: skip
    identity = {"world": "LWM-Tiny-v0", "weights": "0" * 64, "device": "cpu"}
    return build(measured, protocol, identity, {"dreaming": 1.234})


class Mayfly(Fake):
    """A dream whose frames tell how many steps old it is, and that ends in its third."""

    def __init__(self, spec: WorldSpec) -> None:
        self.spec = spec

    def start(self, frames, actions):
        return {"step": torch.zeros(len(frames))}

    def step(self, state, action, noise=None, temperature=0.0):
        step = state["step"] + 1
        frames = step.to(torch.uint8)[:, None, None, None].expand(-1, *self.spec.frame_size, 3)
        nothing = torch.zeros(len(step))
        return {"step": step}, Output(frames, nothing[:, None], nothing[:, None, None], (step == 3).float(), nothing)


@pytest.mark.parametrize(
    ("lasts", "ages"), [(None, range(1, 13)), (5, [1, 2, 3, 4, 5, 1, 2, 3, 1, 2, 3, 1]), (0, [1, 2, 3] * 4)]
)
def test_a_dream_that_has_ended_begins_again_at_its_context(tiny_spec, lasts, ages):
    context, watched = torch.zeros(2, CONTEXT, *tiny_spec.frame_size, 3, dtype=torch.uint8), []
    actions = torch.zeros(2, CONTEXT - 1 + 12, 1).long()

    dream = roll(
        Mayfly(tiny_spec), context, actions, (), Sampling(), lambda _: None, lambda *given: watched.append(given), lasts
    )

    assert dream.age.tolist() == [list(ages)] * 2
    assert [int(frames[1, 0, 0, 0]) for _, frames, _ in watched] == list(ages)
    assert [bool(again.all()) for *_, again in watched] == [age == 1 < step for step, age in enumerate(ages, 1)]


def test_a_dream_that_is_measured_draws_the_ends_that_an_env_draws(duel_world):
    model = WorldModel.load(duel_world)
    model.spec = model.spec.model_copy(update={"draw_ends": True})
    frames, before = (part[:1] for part in (model.prompts.frames, model.prompts.actions))
    plan = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (1, 40, 2)))

    told = roll(model, frames, torch.cat([before, plan], 1), (), Sampling(1.0, seed=5), lambda _: None).end_probs[0]

    engine = Engine(model, 1, temperature=1.0)
    engine.reset(np.array([True]), [5], (frames, before))
    assert told.tolist() == [float(engine.step(plan[:, step]).terminated) for step in range(40)]
    assert 0 < told.sum() < 40


# -- figures -----------------------------------------------------------------------------------------------------------


def test_a_perfect_dream_has_infinite_psnr_and_all_events(held_out, tiny_spec):
    measured = measure(held_out, tiny_spec, perfect=True)
    report = report_of(measured)

    assert (psnr(measured.tallies["dream"].ratio()) == np.inf).all()
    for row, value in (("ssim", 1), ("ssim_codec", 1), ("sharpness", 1), ("colour_distance", 0), ("psnr", None)):
        assert {figure.value for figure in report.rows[row].values()} == {value}, row
    for events in (report.rewards, report.terminations):
        assert (events.found, events.false, events.missed, events.f1.value) == (1, 0, 0, 1)


def test_the_camera_is_off_by_what_it_missed(held_out, tiny_spec):
    """A wall that scrolls two pixels a step, dreamed by a camera that moves one."""
    wall = np.random.default_rng(0).integers(0, 256, (NUM_CLIPS, 16, 40, 3), np.uint8)
    frames = np.stack([wall[:, :, 2 * t : 2 * t + 16] for t in range(held_out.clips.observations.shape[1])], 1)
    scrolling = replace(held_out, clips=replace(held_out.clips, observations=frames))

    class Slow(Fake):
        def start(self, frames, actions):
            return super().start(frames, actions) | {"offset": torch.tensor([[0.0, 0.25]]).expand(len(frames), 2)}

        def step(self, state, action, noise=None, temperature=0.0):
            new, output = super().step(state, action, noise, temperature)
            return new | {"motion": torch.tensor([[0.0, -1.0, 0.0, 0.0]]).expand(len(action), 4)}, output

    measured = evaluate.measure(Slow(scrolling, tiny_spec, True), scrolling, Sampling(), lambda _: None)

    assert measured.tallies["camera"].ratio().tolist() == pytest.approx([1.25, 2.25, 3.25, 4.25, 5.25, 6.25])
    assert measured.tallies["on_course"].ratio().tolist() == [0] * STEPS


def test_a_dream_that_stands_still_equals_the_copy_row(held_out, tiny_spec):
    measured = measure(held_out, tiny_spec, perfect=False)
    report = report_of(measured)

    assert measured.tallies["dream"].ratio().tolist() == measured.tallies["copy"].ratio().tolist()
    assert report.rows["psnr"] == report.rows["psnr_copy"]
    assert {figure.value for figure in report.rows["psnr_over_copy"].values()} == {0}
    assert {figure.value for figure in report.rows["control"].values()} == {0}  # it does not listen
    assert (report.terminations.missed, report.terminations.recall.value) == (1, 0)


def test_pooled_psnr_is_that_of_all_errors_together(held_out, tiny_spec):
    figure = report_of(measure(held_out, tiny_spec, perfect=False)).rows["psnr"]["4"]

    observations = held_out.clips.observations.astype(float)[1:]  # clip 0 is over after 3 steps
    error = np.square(observations[:, CONTEXT - 1 + 4] - observations[:, CONTEXT - 1]).mean()
    assert figure.value == pytest.approx(10 * np.log10(255**2 / error), abs=1e-4)
    assert figure.low <= figure.value <= figure.high


def test_frames_after_the_end_change_nothing(held_out, tiny_spec):
    before = measure(held_out, tiny_spec, perfect=False)
    held_out.clips.observations[0, CONTEXT + 3 :] = 0

    after = measure(held_out, tiny_spec, perfect=False)

    assert report_of(before).rows == report_of(after).rows
    assert report_of(after).running_clips == {"1": 5, "4": 4, "6": 4}


def test_chunks_change_nothing(held_out, tiny_spec, monkeypatch):
    whole = measure(held_out, tiny_spec, perfect=False)
    monkeypatch.setattr(evaluate, "CHUNK", 2)

    parts = measure(held_out, tiny_spec, perfect=False)

    assert report_of(whole) == report_of(parts)


def test_beyond_the_truth_there_is_drift_and_no_psnr(held_out, tiny_spec):
    longer = np.concatenate([held_out.actions, held_out.actions], 1)
    length = longer.shape[1] - CONTEXT + 1
    fake = Fake(held_out, tiny_spec, perfect=False)

    report = report_of(evaluate.measure(fake, replace(held_out, actions=longer), Sampling(), lambda _: None), length)

    assert set(report.rows["psnr"]) == set(report.rows["ssim"]) == {"1", "4"}
    assert set(report.rows["sharpness"]) == set(report.rows["colour_distance"]) == {"1", "4", "8", str(length)}
    assert report.rows["sharpness"]["8"].value == pytest.approx(1, abs=0.1)  # the copied noise is as sharp as noise


def test_the_threshold_is_found_between_true_and_false_ends(held_out, tiny_spec):
    perfect = Fake(held_out, tiny_spec, perfect=True)

    threshold, f1 = evaluate.calibrate_threshold(perfect, held_out, Sampling(), lambda _: None)

    assert 0 < threshold < 1 and f1 == 1


def test_stored_clips_that_end_within_the_context_are_left_out(held_out):
    held_out.clips.terminations[1, 0] = True
    held_out.clips.valid[1, 1:] = False
    held_out.clips.valid[2, CONTEXT - 1 :] = False

    left = from_clips(held_out.clips, CONTEXT)

    assert len(left) == NUM_CLIPS - 2 and left.truth == left.horizon == STEPS
    with pytest.raises(InvalidInput, match="context must be 1 to 8"):
        from_clips(held_out.clips, 99)


# -- the report --------------------------------------------------------------------------------------------------------


def test_a_report_survives_json(held_out, tiny_spec):
    report = report_of(measure(held_out, tiny_spec, perfect=True))  # with infinite figures

    text = report.to_json()

    assert Report.model_validate_json(text) == report
    assert "NaN" not in text and "Infinity" not in text
    assert "ssim" in as_table(report) and "terminations: F1 1.00" in as_table(report)


def test_a_new_report_replaces_the_old_and_leaves_other_files(held_out, tiny_spec, tmp_path):
    measured = measure(held_out, tiny_spec, perfect=False)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "clip-99.gif").write_bytes(b"old")
    (tmp_path / "report" / "notes.txt").write_text("mine")

    page = write_report(tmp_path, report_of(measured), measured.showcase, fps=15)

    names = {path.name for path in page.parent.iterdir()}
    assert {"index.html", "strip.png", "psnr.png", "drift.png", "events.png", "clip-0.gif", "notes.txt"} <= names
    assert "clip-99.gif" not in names
    assert {path.name for path in tmp_path.iterdir()} == {"report", "report.json"}
    assert all(f'src="{name}"' in page.read_text() for name in names if name.endswith((".png", ".gif")))


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="--out"):
        check_output(tmp_path / "file")
