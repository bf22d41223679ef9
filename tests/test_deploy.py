"""What `deploy/` says is true of the package: its pip lines, its settings, and every query of its dashboard."""

import json
import re
import shutil
import subprocess
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DEPLOY = REPOSITORY / "deploy"
NAME = re.compile(r"\b(?:lwm|process)_\w+")
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="an installation without the repository")


def lines_of(name):
    return [line for line in (DEPLOY / name).read_text().splitlines() if not line.lstrip().startswith("#")]


def read_yaml(name):
    return pytest.importorskip("yaml", reason="PyYAML is not installed").safe_load((DEPLOY / name).read_text())


def test_the_images_install_what_pyproject_declares():
    text = "\n".join(lines_of("Dockerfile"))
    extras = re.findall(r"lwm_env-\*\.whl\)\[([\w,]+)\]", text)

    assert len(extras) == 2 and all({"web", "video"} < set(names.split(",")) for names in extras)
    assert {name for names in extras for name in names.split(",")} <= set(PYPROJECT["optional-dependencies"])
    assert all(not {"onnx", "gpu"} <= set(names.split(",")) for names in extras)  # one module of the same name each
    torch = next(line for line in PYPROJECT["dependencies"] if line.startswith("torch"))
    assert re.findall(r'pip install "(torch[^"]*)"', text) == [torch, torch]


def test_the_images_are_made_of_what_the_wheel_needs():
    kept = {line[1:] for line in lines_of("Dockerfile.dockerignore") if line.startswith("!")}
    packages = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]

    assert {package.split("/")[0] for package in packages["packages"]} | {"pyproject.toml", "README.md"} <= kept
    assert all((REPOSITORY / name).exists() for name in kept)


def test_the_services_fit_together():
    compose = read_yaml("compose.yaml")
    targets = re.findall(r"^FROM \S+ AS (\w+)", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    for name, service in compose["services"].items():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            found = (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
            assert found, f"{name}: {volume}"
        published = service.get("ports", [])
        assert name == "caddy" or all(port.startswith("127.0.0.1:") for port in published)
    assert {"cpu", "cuda"} <= set(targets)
    assert read_yaml("compose.cuda.yaml")["services"].keys() == {"lwm"}
    sources = read_yaml("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert {source["uid"] for source in sources} == {"prometheus"}
    (provider,) = read_yaml("grafana/provisioning/dashboards/lwm.yaml")["providers"]
    assert any(f":{provider['options']['path']}:" in volume for volume in compose["services"]["grafana"]["volumes"])


def test_the_settings_of_the_container_are_good_and_let_prometheus_in(monkeypatch):
    pytest.importorskip("fastapi", reason="the extra web is not installed")
    from lwm_env.errors import ConfigMismatch
    from lwm_env.web.guard import Allowed
    from lwm_env.web.settings import read_settings

    monkeypatch.delenv("LWM_ACCESS_TOKEN", raising=False)
    with pytest.raises(ConfigMismatch, match="access_token"):
        read_settings(DEPLOY / "server.toml")
    monkeypatch.setenv("LWM_ACCESS_TOKEN", "a-token-of-the-tests-0123456789")
    settings = read_settings(DEPLOY / "server.toml")

    scraped = read_yaml("prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert set(scraped) <= Allowed(settings, settings.port).hosts
    assert settings.access_token == "a-token-of-the-tests-0123456789"


def test_every_query_of_the_dashboard_names_a_metric_that_is_exposed_and_none_is_missing(play_server):
    dashboard = json.loads((DEPLOY / "grafana/dashboards/lwm.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    room = play_server.call("POST", "rooms", {"world": "LWM-Tiny-v0", "clock": "manual"})
    play_server.call("POST", f"rooms/{room['room']}/step", {"actions": {"player_0": 1}}, room["token"])
    with pytest.raises(urllib.error.HTTPError):  # a refusal
        urllib.request.urlopen(urllib.request.Request(f"{play_server.url}/api/worlds", headers={"Host": "elsewhere"}))
    with urllib.request.urlopen(f"{play_server.url}/metrics") as answer:
        told = answer.read().decode()
    exposed = set(re.findall(r"^((?:lwm|process)_\w+)", told, flags=re.MULTILINE))
    families = set(re.findall(r"^# TYPE (lwm_\w+)", told, flags=re.MULTILINE))

    asked = {name for query in queries for name in NAME.findall(query)}
    assert len(queries) > 10 and asked <= exposed
    created = {name for name in families if name.endswith("_created")}
    assert families - created <= {name.removesuffix("_bucket") for name in asked}
    assert all(query.count("(") == query.count(")") for query in queries)


def test_docker_itself_reads_the_compose_file(monkeypatch):
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not installed")
    monkeypatch.setenv("LWM_ACCESS_TOKEN", "x")
    monkeypatch.setenv("GRAFANA_PASSWORD", "x")
    command = ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"]

    assert subprocess.run(command, capture_output=True, text=True).returncode == 0
