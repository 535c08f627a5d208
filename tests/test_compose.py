"""The compose file and what it mounts: all that can be said of it without a container engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.generate import FOLDER
from genesis.observability import names
from tests.telemetry_names import RULE_FILES

ROOT = Path(__file__).parents[1] / "dashboards"
COMPOSE = ROOT / "compose.yaml"
PROVISIONING = ROOT / "grafana" / "provisioning"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = read(COMPOSE)["services"]
    return found


@pytest.fixture(scope="module")
def datasources() -> dict[str, Any]:
    found = read(PROVISIONING / "datasources" / "genesis.yaml")["datasources"]
    return {each["uid"]: each for each in found}


def test_the_compose_file_follows_the_specification() -> None:
    """The schema of the Compose specification accepts it."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(COMPOSE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_image_is_pinned(services: dict[str, Any]) -> None:
    """Each image that is not built here has an exact version; so has the one that ours is built on."""
    built = {each["image"] for each in services.values() if "build" in each}
    used = {each["image"] for each in services.values()} - built
    recipes = [each["build"]["dockerfile_inline"] for each in services.values() if "build" in each]
    used |= {base for recipe in recipes for base in re.findall(r"^FROM (\S+)", recipe, re.MULTILINE)}
    assert len(used) == 7
    for image in used:
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+(-[a-z-]+)?", image), image


def test_everything_mounted_or_copied_is_there(services: dict[str, Any]) -> None:
    """A bind mount without a source would be made an empty folder, in silence."""
    mounts = [mount for each in services.values() for mount in each.get("volumes", [])]
    bound = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert bound
    for source in bound:
        assert (ROOT / source).exists(), source
    (build,) = [each["build"] for each in services.values() if "build" in each]
    for line in re.findall(r"^COPY (.+) \S+$", build["dockerfile_inline"], re.MULTILINE):
        for source in line.split():
            assert (ROOT / build["context"] / source).exists(), source


def test_ports_are_published_on_this_machine_only(services: dict[str, Any]) -> None:
    """Nobody has to log in, so nobody else may come in."""
    ports = [port for each in services.values() for port in each.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_three_instances_are_scraped_and_called(services: dict[str, Any]) -> None:
    """The routers of the compose file are what Prometheus scrapes and the callers call."""
    routers = {f"{name}:8000" for name, each in services.items() if each.get("hostname") == name}
    (job,) = read(ROOT / "prometheus" / "prometheus.yml")["scrape_configs"]
    (group,) = job["static_configs"]
    assert len(routers) == 3
    assert set(group["targets"]) == routers
    called = [word for word in services["callers"]["command"] if word.startswith("http")]
    assert set(called) == {f"http://{router}" for router in routers}


def test_datasources_point_at_services_and_at_each_other(
    services: dict[str, Any], datasources: dict[str, Any]
) -> None:
    """Every URL names a service of the compose file, every link another datasource of this file."""
    for each in datasources.values():
        host = re.fullmatch(r"http://([a-z]+):\d+", each["url"])
        assert host is not None, each["url"]
        assert host[1] in services
    linked = re.findall(r"'datasourceUid': '([^']+)'", str(datasources))
    assert set(linked) == set(datasources)


def test_the_ways_between_metric_trace_and_log_are_wired(datasources: dict[str, Any]) -> None:
    """Exemplar to trace, span to the log of its call, log line to trace."""
    prometheus, jaeger, loki = (
        datasources[f"genesis-{name}"]["jsonData"] for name in ("prometheus", "jaeger", "loki")
    )
    (exemplars,) = prometheus["exemplarTraceIdDestinations"]
    assert (exemplars["name"], exemplars["datasourceUid"]) == ("trace_id", "genesis-jaeger")
    assert jaeger["tracesToLogsV2"]["datasourceUid"] == "genesis-loki"
    # Only what Jaeger has among a span's tags (not service.name): without a value there is no link.
    used = set(re.findall(r'__span\.tags\["([^"]+)"\]', jaeger["tracesToLogsV2"]["query"]))
    assert used == {names.ITEM_ID}
    (field,) = loki["derivedFields"]
    assert (field["matcherRegex"], field["datasourceUid"]) == ("trace_id", "genesis-jaeger")


def test_exemplars_spans_and_logs_arrive(services: dict[str, Any]) -> None:
    """Exemplars are stored, spans go to the port for OTLP, and what routers write is read."""
    assert "--enable-feature=exemplar-storage" in services["prometheus"]["command"]
    collector = read(ROOT / "compose" / "collector.yaml")
    (pattern,) = collector["receivers"]["filelog"]["include"]
    assert collector["exporters"]["otlphttp"]["endpoint"] == "http://loki:3100/otlp"
    for name in ("router-1", "router-2", "router-3"):
        assert services[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4318"
        (file,) = re.findall(r"2>> (\S+)", services[name]["command"][-1])
        assert Path(file).match(pattern)
        mounts = [each["volumes"] for each in (services[name], services["collector"])]
        assert all(f"logs:{Path(file).parent}" in " ".join(each) for each in mounts)


def test_the_rate_interval_fits_the_scrapes(datasources: dict[str, Any]) -> None:
    """$__rate_interval is four of Grafana's idea of the scrape interval, which must be the real one."""
    scraped = read(ROOT / "prometheus" / "prometheus.yml")["global"]["scrape_interval"]
    assert datasources["genesis-prometheus"]["jsonData"]["timeInterval"] == scraped


def test_grafana_finds_the_dashboards(services: dict[str, Any]) -> None:
    """The provider looks where the compose file mounts the generated files."""
    (provider,) = read(PROVISIONING / "dashboards" / "genesis.yaml")["providers"]
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    inside = {target: (ROOT / source).resolve() for source, target in mounts.items()}
    assert inside[provider["options"]["path"]] == FOLDER
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (inside[str(Path(home).parent)] / Path(home).name).exists()


def test_prometheus_loads_every_rule() -> None:
    """The pattern of the configuration finds the rule files, and nothing else."""
    (pattern,) = read(ROOT / "prometheus" / "prometheus.yml")["rule_files"]
    assert set((ROOT / "prometheus").glob(pattern)) == set(RULE_FILES)
    assert RULE_FILES


def test_prometheus_accepts_its_configuration() -> None:
    """`promtool check config`, with the rules that it loads."""
    if shutil.which("promtool") is None:
        pytest.skip("no `promtool` on this machine (Debian: apt-get install prometheus)")
    command = ["promtool", "check", "config", str(ROOT / "prometheus" / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
