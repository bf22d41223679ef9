"""Student over teacher: ratios by hand, and the command that measures all worlds on the same clips."""

import json
import math
import shutil

import numpy as np
import pytest

from lwm_env.errors import ConfigMismatch
from lwm_training.teacher_report import as_text, compare, geometric_mean

PROTOCOL = {
    "source": "game", "split": "validation", "policy": "sticky", "seed": 0, "num_clips": 8, "context": 4, "horizon": 60,
}  # fmt: skip


def figures(**values):
    return {step.removeprefix("at_"): {"value": value} for step, value in values.items()}


def report(gain, reward=0.5, end=0.5, psnr=20.0, **more):
    return {
        "world": "LWM-T-v0",
        "weights": "0" * 64,
        "protocol": PROTOCOL,
        "rows": {"psnr_over_copy": gain, "psnr": figures(at_15=psnr), **more.pop("rows", {})},
        "rewards": {"f1": {"value": reward}},
        "terminations": {"f1": {"value": end}},
        **more,
    }


def test_ratios_are_of_means_over_the_horizons_that_both_have():
    student = report(figures(at_1=6.0, at_15=3.0, at_60=None, at_300=99.0), reward=0.4)
    teacher = report(figures(at_1=8.0, at_15=4.0, at_60=2.0, at_300=1.0), reward=0.8)

    found = compare(student, teacher)

    assert found["ratios"] == {"psnr_gain": 0.75, "reward_f1": 0.5, "termination_f1": 1.0}
    assert found["geometric_mean"] == round((0.75 * 0.5 * 1.0) ** (1 / 3), 4)
    assert found["missing"] == ["idm", "fd_idm", "agent_return"]
    assert "student over teacher: psnr_gain 0.75, reward_f1 0.50" in as_text(found)
    assert "not in the reports: idm, fd_idm, agent_return" in as_text(found)


def test_of_a_distance_less_is_better():
    gain = figures(at_1=1.0)
    rows = {"idm": figures(at_1=0.6)}
    student = report(gain, rows=rows, distances={"fd_idm": {"16": {"dreamed": 8.0}, "60": {"dreamed": 1.0}}})
    teacher = report(gain, rows={"idm": figures(at_1=0.8)}, distances={"fd_idm": {"16": {"dreamed": 2.0}}})

    found = compare(student, teacher)

    assert found["ratios"]["fd_idm"] == 0.25 and found["ratios"]["idm"] == 0.75
    assert found["missing"] == ["agent_return"]


def test_a_figure_that_is_not_above_0_makes_the_mean_undefined_instead_of_flattering_it():
    found = compare(report(figures(at_1=-1.0)), report(figures(at_1=2.0)))

    assert found["ratios"]["psnr_gain"] is None and found["geometric_mean"] is None
    assert "psnr_gain undefined" in as_text(found)
    assert geometric_mean([]) is None and math.isclose(geometric_mean([0.5, 2.0]), 1.0)


def test_the_control_is_measured_against_the_same_teacher():
    teacher = report(figures(at_1=4.0))
    found = compare(report(figures(at_1=3.0), psnr=17.5), teacher, report(figures(at_1=2.0), psnr=16.0))

    assert found["control"]["ratios"]["psnr_gain"] == 0.5 and found["psnr_15_over_control"] == 1.5
    assert "PSNR after 15 steps over the control: +1.50 dB" in as_text(found)


def agents(random, dream, **more):
    """What of a report of `lwm agent report` counts."""
    returns = {"random": {"value": random}, "dream": {"value": dream}}
    return {"real": "game", "config": {"num_seeds": 3}, "settings": {}, "return_real": returns, **more}


def test_what_agents_earn_over_random_actions_is_one_of_the_ratios():
    gain = figures(at_1=1.0)
    student, teacher = ({**report(gain), "weights": digit * 64} for digit in "12")
    told = {"1" * 64: agents(3.0, 4.0), "2" * 64: agents(3.0, 5.0)}

    assert compare(student, teacher, agents=told)["ratios"]["agent_return"] == 0.5
    assert "agent_return" in compare(student, teacher, agents={"1" * 64: agents(3.0, 4.0)})["missing"]
    with pytest.raises(ConfigMismatch, match="none of the worlds has"):
        compare(student, teacher, agents={"3" * 64: agents(3.0, 4.0)})
    with pytest.raises(ConfigMismatch, match="other ways"):
        compare(student, teacher, agents={**told, "2" * 64: agents(3.0, 5.0, config={"num_seeds": 1})})


def test_reports_of_other_clips_are_not_compared():
    other = {**report(figures(at_1=1.0)), "protocol": {**PROTOCOL, "seed": 3}}

    with pytest.raises(ConfigMismatch, match="report of the teacher is of other clips: seed is 3 there, 0 here"):
        compare(report(figures(at_1=1.0)), other)


def test_the_command_measures_all_worlds_on_the_same_clips(tiny_world, tiny_spec, tmp_path, capsys):
    pytest.importorskip("h5py", reason="needs the extra `data`")
    pytest.importorskip("matplotlib", reason="needs the extra `train`")
    from lwm_env.cli import main
    from lwm_training.teachers import render
    from lwm_training.teachers.world_teacher import WorldTeacher

    render(WorldTeacher(str(tiny_world), tiny_spec), tiny_spec, tmp_path / "clips", 4)
    options = ["--clips", "4", "--horizon", "3", "--context", "2", "--device", "cpu", "--json"]
    stored = ["--store", str(tmp_path / "clips"), "--out", str(tmp_path / "out")]
    others = ["--teacher", str(tiny_world), "--control", str(tiny_world)]
    weights = json.loads((tiny_world / "world.json").read_text())["files"]["model.safetensors"]["sha256"]
    (tmp_path / "agents.json").write_text(json.dumps({"weights": weights, **agents(1.0, 3.0)}))
    others += ["--agents", str(tmp_path / "agents.json")]

    code = main(["evaluate", str(tiny_world), *options, *stored, *others])

    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found == json.loads((tmp_path / "out" / "teacher.json").read_text())
    assert set(found["ratios"].values()) <= {1.0, None} and found["psnr_15_over_control"] is None
    assert found["ratios"]["agent_return"] == 1
    assert len(set(found["parameters"].values())) == 1 and len(found["parameters"]) == 3
    reports = [json.loads((tmp_path / "out" / who / "report.json").read_text()) for who in ("", "teacher", "control")]
    assert reports[0]["rows"] == reports[1]["rows"] == reports[2]["rows"]
    assert np.isfinite(reports[0]["rows"]["psnr"]["1"]["value"])


def test_figures_of_different_inverse_dynamics_nets_are_not_compared():
    gain, rows = figures(at_1=1.0), {"idm": figures(at_1=0.6)}
    student, teacher = report(gain, rows=rows), report(gain, rows=rows)
    teacher["protocol"] = {**PROTOCOL, "idm": "1" * 64}

    found = compare(student, teacher)

    assert "idm" not in found["ratios"] and "idm" in found["missing"]


def test_all_worlds_are_read_by_the_net_of_one(tiny_world, tiny_spec, tmp_path, capsys):
    inverse_dynamics = pytest.importorskip("lwm_training.inverse_dynamics", reason="not merged")
    pytest.importorskip("h5py", reason="needs the extra `data`")
    pytest.importorskip("matplotlib", reason="needs the extra `train`")
    from lwm_env.cli import main
    from lwm_training.teachers import render
    from lwm_training.teachers.world_teacher import WorldTeacher

    render(WorldTeacher(str(tiny_world), tiny_spec), tiny_spec, tmp_path / "clips", 4)
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_world, teacher)
    inverse_dynamics.save(inverse_dynamics.InverseDynamics(tiny_spec), teacher / inverse_dynamics.FILE, {})
    options = ["--clips", "4", "--horizon", "5", "--context", "4", "--device", "cpu", "--json"]
    stored = ["--store", str(tmp_path / "clips"), "--out", str(tmp_path / "out")]

    code = main(["evaluate", str(tiny_world), *options, *stored, "--teacher", str(teacher)])

    found = json.loads(capsys.readouterr().out)
    reports = [json.loads((tmp_path / "out" / who / "report.json").read_text()) for who in ("", "teacher")]
    assert code == 0 and reports[0]["protocol"]["idm"] == reports[1]["protocol"]["idm"] is not None
    assert found["ratios"].get("idm", 1.0) in (1.0, None)


def test_what_goes_with_a_teacher_is_refused_without_one_and_where_it_is_no_report(tiny_world, tmp_path, capsys):
    from lwm_env.cli import main

    (tmp_path / "agents.json").write_text('{"weights": "0", "return_real": {}}')
    words = ["evaluate", str(tiny_world)]
    for option in (["--control", str(tiny_world)], ["--agents", str(tmp_path / "agents.json")]):
        assert main([*words, *option]) == 2
        assert "--control and --agents go with --teacher" in capsys.readouterr().err
    teacher = ["--teacher", str(tiny_world), "--out", str(tmp_path / "out")]
    assert main([*words, *teacher, "--agents", str(tmp_path / "agents.json")]) == 1
    assert "no report of agents" in capsys.readouterr().err
