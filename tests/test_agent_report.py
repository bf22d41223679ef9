"""`lwm agent report` and `lwm agent gain`: statistics worked out by hand, a report that is stopped and goes on, what
they refuse."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
from lwm_agents.gain import frames_until, gains
from lwm_agents.transfer import bootstrap, dream_minus_real, dream_over_real, mean_return, transfer_ratio
from lwm_env import cli

REAL = '''
"""Stands for the real game: a dream with other weights of chance, of which every making is written down. Where there is
a file `cut.txt` with a number, it is interrupted after so many steps."""
from pathlib import Path
from gymnasium.vector import VectorWrapper
from lwm_env.envs import LwmVectorEnv

CUT = Path(__file__).with_name("cut.txt")

class Fragile(VectorWrapper):
    def step(self, actions):
        if CUT.exists():
            left = int(CUT.read_text()) - 1
            CUT.write_text(str(left)) if left else CUT.unlink()
            if not left:
                raise KeyboardInterrupt
        return super().step(actions)

def make(world, num_envs, seed, split, autoreset_mode):
    with Path(__file__).with_name("made.txt").open("a") as file:
        file.write(f"{split} {seed}\\n")
    options = {"autoreset_mode": autoreset_mode, "max_episode_steps": 6, "temperature": 1.0}
    return Fragile(LwmVectorEnv(world, num_envs, **options))
'''


def rows(*values: float) -> np.ndarray:
    """Three episodes for each seed, all with one return."""
    return np.repeat(np.array(values, float)[:, None], 3, 1)


# -- statistics ------------------------------------------------------------------------------------------------------


def test_the_transfer_ratio_is_that_of_the_means():
    figure = transfer_ratio(random=rows(1, 1), real=rows(5, 5), dream=rows(4, 4))

    assert (figure.value, figure.low, figure.high) == (0.75, 0.75, 0.75)
    assert transfer_ratio(rows(1, 3), rows(5, 7), rows(2, 4)).value == (3 - 2) / (6 - 2)


def test_where_the_real_game_taught_nothing_there_is_no_ratio():
    assert transfer_ratio(rows(2, 2), rows(2, 2), rows(3, 3)).value is None
    unsure = transfer_ratio(rows(0, 2), rows(0, 2.5), rows(0, 1))  # half of the draws have random above real
    assert unsure.value == pytest.approx((0.5 - 1) / (1.25 - 1)) and unsure.low is None


def test_seeds_and_then_episodes_are_drawn():
    rng = np.random.default_rng(0)
    of_episodes = bootstrap(np.array([[0.0, 1.0]]), rng)  # one seed, two episodes
    of_seeds = bootstrap(np.array([[0.0, 0.0], [1.0, 1.0]]), rng)  # the episodes of a seed are alike

    for draws in (of_episodes, of_seeds):
        values, counts = np.unique(draws, return_counts=True)
        assert values.tolist() == [0, 0.5, 1]
        assert np.allclose(counts / len(draws), [0.25, 0.5, 0.25], atol=0.03)
    figure = mean_return(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert (figure.value, figure.low, figure.high) == (0.5, 0, 1)


def test_exploitation_is_a_ratio_where_there_is_one_and_a_difference_always():
    assert dream_over_real(rows(6, 6), rows(4, 4)).value == 1.5
    assert dream_over_real(rows(6, 6), rows(-4, -4)).value is None
    assert dream_minus_real(rows(6, 6), rows(-4, -4)).value == 10


def test_frames_are_counted_where_the_line_through_the_points_first_has_the_return():
    frames, returns = np.array([0.0, 100, 200, 400]), np.array([1.0, 3, 2, 5])

    found = [frames_until(frames, returns, target) for target in (1, 2, 3, 3.5, 5, 6)]
    assert found == [0, 50, 100, 300, 400, None]


def line(*values: float) -> np.ndarray:
    """Returns of two seeds, three episodes each, all alike, at each point of a curve."""
    return np.tile(np.array(values)[None, :, None], (2, 1, 3))


def test_a_gain_is_how_many_frames_the_real_game_alone_takes_for_the_same_return():
    frames = np.array([0.0, 100, 200])
    found = gains({"real": (frames, line(0, 2, 4)), "dream": (frames, line(1, 3, 6))})["dream"]

    assert [(each.frames, each.alone, each.times) for each in found] == [
        (0, 50, None),
        (100, 150, 1.5),
        (200, None, None),
    ]
    assert [(each.low, each.high) for each in found] == [(50, 50), (150, 150), (None, None)]


OTHER = "before\n<!-- agents Other-v0 -->\nof another world\n<!-- /agents -->\n"

# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_game(tmp_path_factory):
    """The folder of a module that makes the real game, importable in this test alone."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "our_real_game.py").write_text(REAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.invalidate_caches()
        yield folder


@pytest.fixture(scope="module")
def args(tiny_world, tiny_spec, real_game, tmp_path_factory) -> list[str]:
    """A report of two seeds, written once."""
    out = tmp_path_factory.mktemp("report")
    (out / "page.md").write_text(f"{OTHER}<!-- agents {tiny_spec.id} -->\nold\n<!-- /agents -->\nafter\n")
    options = {"--out": out, "--seeds": 2, "--steps": 200, "--envs": 2, "--episodes": 5, "--device": "cpu"}
    options |= {"--dream-episodes": 4, "--real": "our_real_game:make", "--into": out / "page.md"}
    words = ["agent", "report", str(tiny_world), *(str(word) for pair in options.items() for word in pair)]
    assert cli.main(words) == 0
    return words


def record(args) -> dict:
    return json.loads((folder(args) / "report.json").read_text())


def folder(args) -> Path:
    """Of the last `--out`, as click takes it."""
    return Path(args[len(args) - args[::-1].index("--out")])


def measured(real_game) -> int:
    """How often the real game was made to measure in it."""
    return (real_game / "made.txt").read_text().count("validation")


def test_a_report_has_every_policy_measured_in_the_real_game(args, tiny_spec):
    found = record(args)

    assert found["world"] == tiny_spec.id and len(found["weights"]) == 64 and found["real"] == "our_real_game:make"
    kinds = [(trial["seed"], trial["kind"], sorted(trial["played"])) for trial in found["trials"]]
    assert kinds == [
        (seed, kind, places)
        for seed in (0, 1)
        for kind, places in (("random", ["real"]), ("real", ["real"]), ("dream", ["dream", "real"]))
    ]
    counts = {(place, len(each["returns"])) for trial in found["trials"] for place, each in trial["played"].items()}
    assert counts == {("real", 5), ("dream", 4)}
    assert {trial["num_timesteps"] for trial in found["trials"]} == {0, 256}  # whole rollouts
    for kind in ("real", "dream"):
        cost = found["training"][kind]
        assert cost["steps_per_second"] == pytest.approx(256 / cost["seconds"])
    for kind, figure in found["return_real"].items():
        returns = [trial["played"]["real"]["returns"] for trial in found["trials"] if trial["kind"] == kind]
        assert figure["value"] == pytest.approx(np.mean(returns))


def test_policies_learn_on_other_levels_than_those_that_measure(args, real_game):
    made = [line.split() for line in (real_game / "made.txt").read_text().splitlines()]

    assert {seed for split, seed in made if split == "train"} == {"0", "20000000"}  # no copy's seed is another's
    assert {seed for split, seed in made if split == "validation"} == {"10000000", "30000000"}


def test_episodes_in_the_dream_begin_where_those_of_the_real_game_do(args):
    asked = [json.loads(path.read_text())["asked"] for path in sorted(folder(args).glob("seed-*/dream-*/episodes-*"))]

    assert [(each.get("begins"), each["num_envs"], each["num_episodes"]) for each in asked] == [
        ("our_real_game:make", 4, 4),
        (None, 2, 5),
    ] * 2


def test_a_table_and_a_plot_lie_beside_the_record(args, tiny_spec):
    table, page = (folder(args) / "report.md").read_text(), (folder(args) / "page.md").read_text()

    assert page == f"{OTHER}<!-- agents {tiny_spec.id} -->\n{table}<!-- /agents -->\nafter\n"
    assert (
        record(args)["weights"][:12] in table
        and "actions drawn" in table
        and "| PPO, dream | " in table
        and "Transfer ratio" in table
    )
    if importlib.util.find_spec("matplotlib"):
        assert (folder(args) / "report.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_finished_is_not_done_again(args, real_game):
    before, times = record(args), measured(real_game)
    (gone,) = folder(args).glob("seed-1/dream-*/episodes-real.json")
    gone.write_bytes(gone.read_bytes()[:100])  # a damaged one is played again

    assert cli.main(args) == 0

    assert measured(real_game) == times + 1
    assert [trial["agent"] for trial in record(args)["trials"]] == [trial["agent"] for trial in before["trials"]]
    returns = [[trial["played"]["real"]["returns"] for trial in found["trials"]] for found in (before, record(args))]
    assert returns[0] == returns[1]


def test_a_report_that_is_cut_anywhere_goes_on_where_it_was(args, real_game, tmp_path, capsys):
    words = [*args, "--out", str(tmp_path / "cut"), "--seeds", "1", "--steps", "300", "--save-every", "1"]
    words[words.index("--into") + 1] = str(folder(args) / "page.md")
    saved = []
    for steps in (5, 100, 100, 67):  # while random play is measured, in two rollouts of a training, in the measuring
        (real_game / "cut.txt").write_text(str(steps))
        assert cli.main(words) == 130 and not (real_game / "cut.txt").exists()
        facts = tmp_path / "cut" / "seed-0" / "real" / "agent" / "agent.json"
        saved.append(json.loads(facts.read_text())["num_timesteps"] if facts.exists() else 0)
    capsys.readouterr()

    assert cli.main(words) == 0
    assert saved == [0, 128, 256, 384]  # rollouts of 2 envs and 64 steps; the next one is begun anew
    found = record(words)
    assert {trial["num_timesteps"] for trial in found["trials"]} == {0, 384}


def test_a_report_may_be_made_in_parts(args, real_game, tmp_path, capsys):
    words = [*args, "--out", str(tmp_path / "parts")]
    for kind, places in (("dream", {"real", "dream"}), ("random", {"real"}), ("real", {"real"})):
        capsys.readouterr()
        assert cli.main([*words, "--only", kind, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["trials"]
        assert [(row["policy"], row["seed"]) for row in rows] == [(kind, 0), (kind, 1)]
        assert all(places <= row.keys() for row in rows)
        assert not (tmp_path / "parts" / "report.json").exists()
    times = measured(real_game)

    assert cli.main(words) == 0

    assert measured(real_game) == times
    whole, parts = ([trial["played"]["real"]["returns"] for trial in record(each)["trials"]] for each in (args, words))
    assert whole == parts
    assert cli.main([*args, "--only", "nobody"]) == 2


def test_a_dream_at_another_temperature_is_another_dream(args, tiny_world, real_game, tmp_path):
    warmer = tmp_path / "warmer"
    shutil.copytree(tiny_world, warmer)
    manifest = json.loads((warmer / "world.json").read_text())
    manifest["spec"]["temperature"] += 0.5
    (warmer / "world.json").write_text(json.dumps(manifest))
    words = [str(warmer) if word == str(tiny_world) else word for word in args]
    shutil.copytree(folder(args), tmp_path / "out")
    words[words.index("--out") + 1] = str(tmp_path / "out")
    before, times = record(args), measured(real_game)

    assert cli.main(words) == 0

    assert measured(real_game) == times + 2 * 2  # of each seed the policy of the dream, and first pictures for it
    found = record(words)
    temperature = manifest["spec"]["temperature"]
    assert found["chances"]["temperature"] == temperature == before["chances"]["temperature"] + 0.5
    assert f"temperature {temperature:g}, termination threshold 0.5" in (tmp_path / "out/report.md").read_text()


def test_a_gain_is_measured_with_the_policies_of_a_report(args, tiny_spec, real_game, tmp_path, capsys):
    out = tmp_path / "gain"
    shutil.copytree(folder(args), out)
    (out / "page.md").write_text(f"<!-- gain {tiny_spec.id} -->\n<!-- /gain -->\n")
    words = ["gain", *args[2:], "--frames", "100", "--frames", "300"]
    at = words.index("--dream-episodes")
    words = ["agent", *words[:at], *words[at + 2 :]]
    words[words.index("--out") + 1], words[words.index("--into") + 1] = str(out), str(out / "page.md")
    times = measured(real_game)

    assert cli.main(words) == 0

    assert measured(real_game) == times + 2 * 2 * 2  # of two seeds two kinds of policies, after either number of frames
    found = json.loads((out / "gain.json").read_text())
    assert {kind: each["frames"] for kind, each in found["lines"].items()} == {
        "real": [0, 128, 384],  # whole rollouts of 2 envs and 64 steps
        "dream": [0, 128, 384],
    }
    (first,) = [each for each in found["curves"] if (each["seed"], each["kind"]) == (0, "dream")]
    (trial,) = [each for each in record(args)["trials"] if (each["seed"], each["kind"]) == (0, "dream")]
    assert first["played"][0] == trial["played"]["real"]
    last = json.loads(next(out.glob("seed-0/dream-*/then-real/after-300/agent/agent.json")).read_text())
    assert last["num_timesteps"] == 256 + 384
    table = (out / "gain.md").read_text()
    assert (
        table in (out / "page.md").read_text()
        and "| 384 | 60.00 (60.00 to 60.00) | 60.00 (60.00 to 60.00) | 0 (0 to 0) |" in table
    )
    before = measured(real_game)
    assert cli.main([*words, "--only", "dream", "--json"]) == 0 and measured(real_game) == before
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["curves"]
    assert [(row["seed"], row["policy"], list(row["returns"])) for row in rows] == [
        (seed, "dream", ["0", "128", "384"]) for seed in (0, 1)
    ]
    assert cli.main([*words, "--frames", "200"]) == 1 and "rise" in capsys.readouterr().err
    other = [*words[: words.index("--frames")], "--frames", "10", "--frames", "300"]
    assert cli.main(other) == 1 and "no copy was kept" in capsys.readouterr().err
    assert cli.main([*words, "--refresh", "1"]) == 2


def test_policies_of_another_number_of_steps_or_configuration_are_not_mixed(args, capsys):
    more = [*args, "--seeds", "1", "--steps", "500"]
    assert cli.main(more) == 0 and record(more)["training"]["dream"]["num_timesteps"] == 512
    for changed, told in ((["--steps", "200"], "cannot be compared"), (["--horizon", "3"], "config")):
        assert cli.main([*args, *changed]) == 1
        assert told in capsys.readouterr().err
    assert cli.main([*args, "--steps", "500", "--into", __file__]) == 1
    assert "<!-- agents " in capsys.readouterr().err
