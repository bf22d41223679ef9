"""The plot of a bench report."""

from pathlib import Path
from typing import Any


def plot(report: dict[str, Any], path: Path) -> bool:
    """Draw env-steps/s over batch sizes, a line for each run; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    work = report["flops_per_frame"] * 1e-9
    for run in report["runs"]:
        rows = run["batches"]
        rates = [row["env_steps_per_second"] for row in rows]
        label = f"{run['backend']} on {run['device']}"
        (line,) = axes.plot([row["num_envs"] for row in rows], rates, marker="o", label=label)
        limit = run["limits"]["gemm_gflops"] / max(work, 1e-9)
        axes.axhline(limit, color=line.get_color(), linestyle=":", label=f"fp32 GEMM limit of {run['device']}")
    axes.set(xlabel="worlds in a batch", ylabel="env-steps/s", xscale="log", yscale="log", title=report["world"])
    axes.grid(alpha=0.3)
    axes.legend(title=report["runs"][0]["machine"], fontsize="small", title_fontsize="small")
    figure.savefig(path, dpi=120)
    return True
