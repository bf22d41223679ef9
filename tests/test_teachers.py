"""Teachers that render clips: a folder of them, a world, and a worker in a process of its own; with a fake worker the
whole path from its pictures to an evaluated world."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lwm_env
from lwm_env import worlds
from lwm_env.errors import ConfigMismatch, CorruptFile, InvalidInput, TeacherFailed, UnknownWorld

pytest.importorskip("accelerate", reason="needs the extra `train`")
pytest.importorskip("cv2", reason="needs the extra `data`")
pytest.importorskip("h5py", reason="needs the extra `data`")

import cv2

from lwm_env.cli import main as lwm
from lwm_env.spec import ContinuousActions
from lwm_training.episodes import EpisodeStore, verify
from lwm_training.recipe import check_document
from lwm_training.teachers import render
from lwm_training.teachers.clips_folder import ClipsFolder
from lwm_training.teachers.licences import GAMECRAFT
from lwm_training.teachers.opening import Rendering, open_teacher

FAKE = Path(__file__).parent / "fake_worker.py"
WORLD = {
    "id": "LWM-Fake-v0",
    "description": "A world of the tests.",
    "frame_size": [16, 16],
    "reward_values": [0.0, 1.0],
    "actions": {"kind": "discrete", "meanings": ["NOOP", "up", "down"], "source_actions": [7, 8, 9]},
    "real": {"source": "teacher:fake"},
}
SMALL = {
    "margin": 8,
    "tokenizer": {"encoder_dim": 8, "encoder_blocks": 1, "fine_dim": 8, "decoder_dim": 8, "decoder_blocks": 1},
    "camera": {"middle_dim": 8, "whole_dim": 4, "hidden_dim": 16, "carry_dim": 8},
    "motion": {"dim": 8, "bottleneck_dim": 16, "bottleneck_blocks": 1},
    "dynamics": {"dim": 8, "blocks": 1, "event_dim": 8},
}
STAGES = [
    {"name": "tokenizer", "trains": "tokenizer", "steps": 1, "learning_rate": 1e-3},
    {"name": "joint", "trains": "joint", "steps": 1, "learning_rate": 1e-3, "context": 2},
]


@pytest.fixture(scope="module")
def spec():
    return check_document({"world": dict(WORLD), "train": {"batch_size": 1, "stages": STAGES}}, "the tests").world


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> Path:
    """Three pictures, whose first bytes tell them apart."""
    folder = tmp_path_factory.mktemp("starts")
    for number in range(3):
        Image.fromarray(np.full((20, 32, 3), 50 * number + 5, np.uint8)).save(folder / f"{number}.png")
    return folder


def opened(spec, starts, fault="none", marker="none", **plan):
    """A teacher whose fake worker has a fault; `worker:` takes a script, so that this one is given its arguments."""
    rendering = Rendering(starts=starts, chunks=3, **plan)
    script = marker.with_suffix(".py") if fault != "none" else FAKE
    if fault != "none":
        script.write_text(
            f"import runpy, sys\nsys.argv[1:] = [{fault!r}, {str(marker)!r}]\n"
            f"runpy.run_path({str(FAKE)!r}, run_name='__main__')"
        )
    return open_teacher(f"worker:{script}", spec, rendering, print)


def rendered(spec, starts, out: Path, episodes: int = 4, **how) -> dict:
    teacher = opened(spec, starts, **how)
    try:
        return render(teacher, spec, out, episodes)
    finally:
        teacher.close()


def content(folder: Path) -> list:
    with EpisodeStore(folder) as store:
        return [episode.digest for episode in store]


@pytest.fixture(scope="module")
def whole(spec, starts, tmp_path_factory) -> Path:
    """What the fake teacher renders if nothing happens."""
    out = tmp_path_factory.mktemp("rendered") / "whole"
    rendered(spec, starts, out)
    return out


# -- a worker --------------------------------------------------------------------------------------------------------


def test_the_action_of_a_chunk_becomes_that_of_each_of_its_frames(whole):
    tints = np.array([0, 10, 200])
    with EpisodeStore(whole) as store:
        assert store.lengths.tolist() == [2 + 3 + 3] * 4
        for number in range(4):
            frames, actions = store.frames_of(number), store.steps(number)["actions"][:, 0]
            assert (np.diff(actions.reshape(-1)[2:].reshape(2, 3)) == 0).all() and actions[0] == actions[1]
            assert (frames[1:, 0, 0, 0] == tints[actions]).all()
            assert (
                frames[0, 0, 0] == frames[1, 0, 0, 2]
            ).all()  # it was given the picture that the episode begins with
        ends = store.steps(0)
        assert not ends["terminations"].any() and ends["truncations"].tolist() == [False] * 7 + [True]


def test_every_recording_tells_its_teacher_and_licences(whole):
    with EpisodeStore(whole) as store:
        facts = store.facts

    assert facts["source"] == "teacher:fake" and facts["teacher"]["weights"] == "0" * 64
    assert facts["licences"] == {"fake": "of the tests"} and facts["restricted"] == ["fake-licence"]
    assert facts["action_map"] == [7, 8, 9] and facts["teacher"]["plan"]["chunks"] == 3


def test_rendering_more_goes_on_where_it_was(spec, starts, whole, tmp_path):
    assert rendered(spec, starts, tmp_path / "out", 2)["episodes_added"] == 2
    assert rendered(spec, starts, tmp_path / "out", 4)["episodes_added"] == 2
    assert rendered(spec, starts, tmp_path / "out", 4)["episodes_added"] == 0

    assert content(tmp_path / "out") == content(whole)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("die", "broke off .* exit code"),
        ("raise", "could not do it: ValueError: out of memory, say"),
        ("short", "bytes"),
    ],
)
def test_a_worker_that_fails_is_told_and_costs_no_whole_episode(spec, starts, whole, tmp_path, fault, told):
    with pytest.raises(TeacherFailed, match=told):
        rendered(spec, starts, tmp_path / "out", fault=fault, marker=tmp_path / "marker")

    before = len(content(tmp_path / "out"))
    rendered(spec, starts, tmp_path / "out")

    assert before < 4 and content(tmp_path / "out") == content(whole) and verify(tmp_path / "out") == []


def test_a_worker_that_hangs_is_ended(spec, starts, tmp_path):
    teacher = opened(spec, starts, "hang", tmp_path / "marker")
    teacher.worker._seconds = 0.5

    with pytest.raises(TeacherFailed, match="did not answer within 0.5 s"):
        render(teacher, spec, tmp_path / "out", 4)

    teacher.close()
    assert teacher.worker._process.poll() is not None


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_rendering_that_was_killed_goes_on_and_gives_the_same_bytes(spec, starts, whole, tmp_path):
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_teachers
from lwm_env.spec import WorldSpec
spec = WorldSpec.model_validate_json({spec.model_dump_json()!r})
test_teachers.rendered(spec, Path({str(starts)!r}), Path({str(tmp_path / "out")!r}), fault="kill",
                       marker=Path({str(tmp_path / "marker")!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], timeout=600)
    assert killed.returncode == -9 and len(content(tmp_path / "out")) < 4

    rendered(spec, starts, tmp_path / "out")

    assert content(tmp_path / "out") == content(whole)


def test_what_another_plan_rendered_is_not_mixed_in(spec, starts, whole):
    with pytest.raises(ConfigMismatch, match="recorded from another source: teacher is"):
        rendered(spec, starts, whole, seed=1)


def test_a_world_with_actions_that_the_worker_does_not_know_is_refused(spec, starts):
    actions = spec.actions.model_copy(update={"meanings": ("NOOP", "up", "jump")})

    with pytest.raises(ConfigMismatch, match=r"does not know the actions jump of LWM-Fake-v0; it knows up, down"):
        opened(spec.model_copy(update={"actions": actions}), starts)


def test_a_script_that_is_no_worker_is_told(spec, starts, tmp_path):
    (tmp_path / "silent.py").write_text("print('x' * 100)")

    with pytest.raises(TeacherFailed, match="silent.py broke off"):
        open_teacher(f"worker:{tmp_path / 'silent.py'}", spec, Rendering(starts=starts), print)


# -- licences --------------------------------------------------------------------------------------------------------


def test_gamecraft_is_not_started_before_its_licence_is_accepted(spec, starts, tmp_path):
    shown = []

    with pytest.raises(ConfigMismatch, match="--accept-license tencent-hunyuan-gamecraft"):
        open_teacher(f"gamecraft:{tmp_path}", spec, Rendering(starts=starts), shown.append)

    assert "European Union" in shown[0] and "derivative" in shown[0]
    with pytest.raises(TeacherFailed, match="gamecraft.py broke off"):  # there is no checkout here
        accepted = Rendering(starts=starts, accepted=(GAMECRAFT.name,))
        open_teacher(f"gamecraft:{tmp_path}", spec, accepted, shown.append)


def test_a_world_under_a_restricted_licence_is_no_default(tiny_config, tiny_spec, tiny_world, tmp_path, monkeypatch):
    folder = tmp_path / "worlds" / "tiny"
    shutil.copytree(tiny_world, folder)
    content = json.loads((folder / "world.json").read_text())
    content["provenance"]["restricted"] = ["tencent-hunyuan-gamecraft"]
    (folder / "world.json").write_text(json.dumps(content))
    shutil.copy(lwm_env.__file__, tmp_path / "__init__.py")
    monkeypatch.setattr(worlds, "shipped_folders", lambda: [folder])

    assert worlds.shipped() == {}
    for name in ("tiny", tiny_spec.id):
        with pytest.raises(UnknownWorld):
            worlds.find(name)
    assert worlds.find(folder) == folder  # by its path it opens
    monkeypatch.setattr(lwm_env, "__file__", str(tmp_path / "__init__.py"))
    with pytest.warns(UserWarning, match=r"not registered: its world learned under \['tencent-hunyuan-gamecraft'\]"):
        lwm_env._register_worlds()
    with pytest.raises(ConfigMismatch, match="must not be shipped"):
        provenance = {"restricted": ["tencent-hunyuan-gamecraft"]}
        worlds.write_world(
            Path(worlds.__file__).parent / "new", spec=tiny_spec, model={}, provenance=provenance, files={}
        )
    assert not (Path(worlds.__file__).parent / "new").exists()


# -- a folder of clips -----------------------------------------------------------------------------------------------


def write_video(path: Path, count: int) -> None:
    """Grey pictures of 32 x 48, each 12 brighter than the last; lossy, but flat, so that the grey stays."""
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (48, 32))
    for number in range(count):
        video.write(np.full((32, 48, 3), 20 + 12 * number, np.uint8))
    video.release()


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "clips"
    path.mkdir()
    write_video(path / "a.mp4", 7)
    write_video(path / "b.mp4", 4)
    chunks = {"actions": ["up", "down"], "frames_per_action": 3, "rewards": [0.0, 1.0], "terminated": True}
    (path / "a.json").write_text(json.dumps(chunks))
    (path / "b.csv").write_text("action,frames\nNOOP,1\n2,2\n")
    return path


def test_clips_become_episodes_with_an_action_for_each_step(folder, spec, tmp_path):
    teacher = open_teacher(f"clips:{folder}", spec, Rendering(licences={"pictures": "CC0"}), print)

    facts = render(teacher, spec, tmp_path / "out", 10)

    assert facts["episodes"] == 2 and facts["frames"] == 6 + 3
    with EpisodeStore(tmp_path / "out") as store:
        assert store.facts["licences"] == {"pictures": "CC0"} and store.facts["restricted"] == []
        first, second = store.steps(0), store.steps(1)
        assert first["actions"][:, 0].tolist() == [1, 1, 1, 2, 2, 2] and second["actions"][:, 0].tolist() == [0, 2, 2]
        assert first["rewards"][:, 0].tolist() == [0, 0, 0, 0, 0, 1]
        assert first["terminations"].tolist() == [False] * 5 + [True] and not second["terminations"].any()
        greys = store.frames_of(0).mean((1, 2, 3))
    assert np.abs(greys - (20 + 12 * np.arange(7))).max() < 4


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.json", '{"actions": ["up"] }', "actions for 1 steps, but the clip has 7 frames, that is 6 steps"),
        ("a.json", '{"actions": ["up", "left"], "frames_per_action": 3}', "'left' is no action of 1 players. Known:"),
        ("a.json", '{"actions": ["up", "down"], "frames_per_action": [3]}', None),
        ("a.json", '{"actions": ["up", "down"], "frames_per_action": 1.5}', "must be a whole number"),
        ("a.json", '{"actions": ["up"], "rewards": [1, 2]}', "1 actions and 2 rewards"),
        ("a.json", '{"acts": []}', "a list of actions"),
        ("a.json", "[", "cannot be read as JSON"),
        ("b.csv", "act\nup\n", "a header with action"),
        ("b.csv", "action,frames\nup,x\n", "frames must be whole numbers"),
        ("b.csv", "action\n9\n9\n9\n", "is no action of 1 players"),
    ],
)  # fmt: skip
def test_actions_that_do_not_fit_their_clip_are_named(folder, spec, tmp_path, name, text, told):
    (folder / name).write_text(text)
    if told is None:  # one number counts for every chunk
        assert len(ClipsFolder(folder, spec, {}).episode(0).steps["actions"]) == 6
        return

    with pytest.raises((InvalidInput, CorruptFile), match=told) as error:
        render(ClipsFolder(folder, spec, {}), spec, tmp_path / "out", 10)

    assert name in str(error.value)


def test_continuous_actions_come_as_numbers(folder, spec):
    wheel = ContinuousActions(meanings=("steer", "gas"), low=(-1.0, 0.0), high=(1.0, 1.0))
    (folder / "a.json").write_text(json.dumps({"actions": [[-0.5, 1], [0.5, 0]], "frames_per_action": [2, 4]}))

    steps = ClipsFolder(folder, spec.model_copy(update={"actions": wheel}), {}).episode(0).steps

    assert steps["actions"].shape == (6, 1, 2) and steps["actions"][:, 0, 0].tolist() == [-0.5] * 2 + [0.5] * 4


def test_a_folder_without_clips_or_actions_is_told(folder, spec, tmp_path):
    with pytest.raises(ConfigMismatch, match="holds no clips"):
        ClipsFolder(tmp_path, spec, {})
    (folder / "b.csv").unlink()
    with pytest.raises(ConfigMismatch, match="no actions for b.mp4"):
        ClipsFolder(folder, spec, {})


def test_what_is_no_video_is_told(folder, spec):
    (folder / "a.mp4").write_bytes(b"no video")

    with pytest.raises(CorruptFile, match=r"a.mp4 cannot be decoded"):
        ClipsFolder(folder, spec, {}).episode(0)


# -- a world ---------------------------------------------------------------------------------------------------------


def test_a_world_renders_its_dreams_and_the_same_again(tiny_world, tiny_spec, tmp_path):
    for name in ("once", "again"):
        teacher = open_teacher(f"world:{tiny_world}", tiny_spec, Rendering(seed=3), print)
        render(teacher, tiny_spec, tmp_path / name, 2)
        teacher.close()

    assert content(tmp_path / "once") == content(tmp_path / "again")
    with EpisodeStore(tmp_path / "once") as store:
        assert len(store) == 2 and store.facts["teacher"]["kind"] == "world"
        assert all(1 <= length <= tiny_spec.max_episode_steps for length in store.lengths)
        assert store.steps(0)["terminations"][-1] or store.steps(0)["truncations"][-1]


# -- the whole path --------------------------------------------------------------------------------------------------


def test_from_a_workers_pictures_to_an_evaluated_world(spec, starts, tmp_path, capsys):
    """Render, record, distil, evaluate, by the commands that a user types."""
    from lwm_env.world_model import WorldModel
    from lwm_training.evaluate import measure
    from lwm_training.held_out import Wanted, stored_clips
    from lwm_training.rollout import Sampling

    world = "\n".join(f"{key} = {json.dumps(value)}" for key, value in WORLD.items() if not isinstance(value, dict))
    (tmp_path / "fake.toml").write_text(
        f"[world]\n{world}\nreal.source = 'teacher:fake'\n[world.actions]\nkind = 'discrete'\n"
        "meanings = ['NOOP', 'up', 'down']\nsource_actions = [7, 8, 9]\n[train]\nbatch_size = 2\n"
        + "".join(
            "[[train.stages]]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in s.items()) + "\n" for s in STAGES
        )
    )
    small = [f"model.overrides.{part}={value}" for part, value in SMALL.items() if not isinstance(value, dict)]
    small += [
        f"model.overrides.{part}.{key}={number}"
        for part, numbers in SMALL.items() if isinstance(numbers, dict) for key, number in numbers.items()
    ]  # fmt: skip
    given = [option for change in small for option in ("-o", change)]
    out = tmp_path / "run"

    code = lwm([
        "distill", f"worker:{FAKE}", "nano", "--recipe", str(tmp_path / "fake.toml"), "--out", str(out), "--json",
        "--starts", str(starts), "--chunks", "3", "--episodes", "4", "--device", "cpu", *given,
    ])  # fmt: skip

    told = json.loads(capsys.readouterr().out)
    assert code == 0 and told["clips"]["episodes"] == 4
    provenance = worlds.verify(told["world"]).provenance
    assert provenance["restricted"] == ["fake-licence"] and provenance["licences"] == {"fake": "of the tests"}
    assert provenance["data"]["teacher"]["name"] == "fake"
    model = WorldModel.load(told["world"])
    held_out = stored_clips(out / "clips", model.spec, Wanted(num_clips=4, context=2, truth=3, horizon=3))
    measured = measure(model, held_out, Sampling(), lambda new: None)
    assert np.isfinite(measured.tallies["dream"].ratio()).all()
