"""What ships: small enough, named by its report, and described with the figures that were measured."""

import json
from pathlib import Path

import pytest

from lwm_env import worlds

ROOT = Path(__file__).parent.parent
FOLDERS = worlds.shipped_folders()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_shipped_world_is_intact_and_at_most_12_mb(folder):
    manifest = worlds.verify(folder)

    assert sum(record.size for record in manifest.files.values()) <= 12_000_000
    assert manifest.provenance["licences"] and manifest.provenance["stages"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_committed_report_is_of_the_weights_that_ship(folder):
    report = json.loads((folder / "report.json").read_text())
    manifest = worlds.read_manifest(folder)

    assert report["weights"] == manifest.files["model.safetensors"].sha256
    assert report["protocol"]["split"] == "validation"
    for name in ("termination_threshold", "draw_ends"):
        assert report["protocol"].get(name, False) == getattr(manifest.spec, name)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_card_and_readme_show_the_figures_of_the_report(folder):
    from lwm_training.report import Report, as_table

    table = as_table(Report.model_validate_json((folder / "report.json").read_text()))

    assert table in (folder / "README.md").read_text()
    if folder.name == "platformer":
        assert table in (ROOT / "README.md").read_text()
