"""`lwm bench`: what it reports, by hand-made numbers and on a tiny world."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lwm_env import bench, bench_serving, machine
from lwm_env.cli import main


def run_of(device: str, limits: dict[str, float]) -> dict:
    rows = [{"num_envs": 1, "env_steps_per_second": 40.0}, {"num_envs": 8, "env_steps_per_second": 100.0}]
    return {"device": device, "limits": limits, "single": {"frames_per_second": 50.0}, "batches": rows}


def test_shares_are_work_times_rate_over_the_limit():
    limits = {"gemm_gflops": 200.0, "gemm_one_core_gflops": 100.0, "copy_gb_per_second": 20.0}
    report = {"flops_per_frame": 10**9, "parameters": 10**7, "runs": [run_of("cpu", limits)]}

    bench.add_shares(report)

    share = report["runs"][0]["share"]
    assert share["single_of_gemm"] == 0.5  # 50 frames/s of 1 GFLOP on a core of 100 GFLOP/s
    assert share["single_of_bandwidth"] == 0.1  # 50 times 40 MB of 20 GB
    assert (share["best_batch_of_gemm"], share["best_batch"]) == (0.5, 8)
    assert "projected" not in report["runs"][0]


def test_a_gpu_gets_projected_figures_with_their_formula():
    limits = {"gemm_gflops": 41_300.0, "copy_gb_per_second": 1008.0}
    report = {"flops_per_frame": 10**9, "parameters": 10**7, "runs": [run_of("cuda:0", limits)]}

    bench.add_shares(report)

    projected = report["runs"][0]["projected"]
    assert "projected" in projected["formula"]
    assert projected["RTX 4090"]["frames_per_second"] == pytest.approx(50 * 0.85)  # bound by its bandwidth
    assert projected["RTX 3060"]["env_steps_per_second"] == pytest.approx(100 * 0.85 * 12_700 / 41_300, abs=0.05)


def test_the_limits_of_the_machine_are_positive_and_threads_are_kept(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "BEST_OF", 1)

    assert all(value > 0 for value in machine.limits(torch.device("cpu")).values())
    assert torch.get_num_threads() == before


def test_flops_of_a_frame_are_those_of_its_matrix_products(tiny_world):
    """The counter sees the linear layers too, which it does not in inference mode."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        nn.Linear(10, 20)(torch.zeros(3, 10))

    assert counter.get_total_flops() == 2 * 3 * 10 * 20
    assert bench.describe(str(tiny_world))["flops_per_frame"] > 10_000


def serving_run(device: str) -> dict:
    rows = [{"num_rooms": 1, "step_ms": 10.0}, {"num_rooms": 4, "step_ms": 20.0}, {"num_rooms": 8, "step_ms": 100.0}]
    numbers = {"fps": 10.0, "players": 2, "max_load": 0.8, "batches": rows, "jpeg_ms": 4.0, "snapshot_ms": 10.0}
    return {"device": device, **numbers}


def test_rooms_and_cents_follow_from_what_a_room_costs():
    cpu, gpu, slow = serving_run("cpu"), serving_run("cuda:0"), serving_run("cpu")
    slow["batches"] = [{"num_rooms": 1, "step_ms": 200.0}]

    bench_serving.add_rooms(cpu, cores=2, price_per_hour=0.6)
    bench_serving.add_rooms(gpu, cores=None, price_per_hour=0.6)
    bench_serving.add_rooms(slow, cores=1, price_per_hour=0.6)

    # 4 rooms: 0.05 + 0.01 s of the engine and 0.04 s of the web process a second, so 8 on a core; 8 would not hold 8
    assert (cpu["rooms_per_core"], cpu["rooms"]) == (8.0, 16)
    assert cpu["cents_per_minute_of_a_room"] == pytest.approx(100 * 0.6 / 60 / 16)
    assert cpu["cents_per_minute_of_a_player"] == pytest.approx(100 * 0.6 / 60 / 16 / 2)
    assert gpu["rooms_per_gpu"] == pytest.approx(0.8 / 0.06, abs=0.01) and gpu["rooms"] == 13
    assert gpu["rooms_of_one_web_process"] == 20.0
    assert (slow["rooms"], slow["cents_per_minute_of_a_room"]) == (0, None)


def test_the_cost_of_serving_a_world_is_measured(tiny_world, tmp_path, capsys):
    before, out = torch.get_num_threads(), tmp_path / "serving.json"
    options = ["--device", "cpu", "--batches", "1,4", "--seconds", "0.01", "--price-per-hour", "0.1", "--cores", "4"]

    assert main(["bench", str(tiny_world), "--serving", *options, "--out", str(out)]) == 0

    told, (run,) = capsys.readouterr().out, json.loads(out.read_text())["runs"]
    assert "per core" in told and "cents a minute and room" in told and "100 * price per hour" in told
    assert run["rooms"] <= run["rooms_per_core"] * 4 and run["fps"] == 15
    expected = 100 * 0.1 / 60 / run["rooms"]
    assert run["cents_per_minute_of_a_room"] == pytest.approx(expected) and torch.get_num_threads() == before


@pytest.fixture
def quick(monkeypatch):
    limits = {"gemm_gflops": 100.0, "gemm_one_core_gflops": 50.0, "copy_gb_per_second": 10.0}
    monkeypatch.setattr(machine, "limits", lambda device: limits)


def test_a_report_and_a_plot_are_written(tiny_world, tmp_path, quick, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra `train`")
    out = tmp_path / "bench.json"

    code = main(
        ["bench", str(tiny_world), "--device", "cpu", "--batches", "2,1", "--seconds", "0.01", "--out", str(out)]
    )

    report = json.loads(out.read_text())
    assert code == 0 and out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    (run,) = report["runs"]
    assert report["world"] == "LWM-Tiny-v0" and (run["device"], run["backend"]) == ("cpu", "torch")
    assert [row["num_envs"] for row in run["batches"]] == [1, 2]
    assert 0 < run["single"]["fastest_ms"] <= run["single"]["p50_ms"] <= run["single"]["p99_ms"]
    assert "frames/s" in capsys.readouterr().out


def test_a_preset_of_any_frame_size_is_measured_with_random_weights(quick, capsys):
    arguments = ["--preset", "nano", "--frame-size", "16x32", "--device", "cpu", "--batches", "1", "--seconds", "0.01"]

    assert main(["bench", *arguments, "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert (report["preset"], report["frame_size"]) == ("nano", [16, 32])


@pytest.mark.parametrize(
    "arguments",
    [["--batches", "0"], ["--batches", "1,x"], ["--preset", "nano", "--frame-size", "64"], ["--backend", "jax"]],
)
def test_wrong_arguments_are_told(arguments, tiny_world, quick, capsys):
    assert main(["bench", str(tiny_world), "--device", "cpu", "--seconds", "0.01", *arguments]) == 1
    assert "was given" in capsys.readouterr().err
