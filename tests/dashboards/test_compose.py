"""The compose file and the files it mounts: all checks that need no container engine."""

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
from tests.support.telemetry_names import RULE_FILES

ROOT = Path(__file__).parents[2] / "dashboards"
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


def test_grafana_can_open_the_trace_of_a_call(services: dict[str, Any]) -> None:
    """Grafana 12.0 to 12.3 ask Jaeger for `$trace_id` by that very name (grafana/grafana#115513)."""
    major, minor = services["grafana"]["image"].split(":")[1].split(".")[:2]
    assert (int(major), int(minor)) >= (12, 4)


def test_everything_mounted_or_copied_is_there(services: dict[str, Any]) -> None:
    """A bind mount without a source would silently become an empty folder."""
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
    """There is no login, so it listens only on the loopback address."""
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
    assert '__span.tags["genesis.item_id"]' in jaeger["tracesToLogsV2"]["query"]
    # A variable that is not there hides the link: of the resource Jaeger has all but service.name.
    used = set(re.findall(r'__span\.tags\["([^"]+)"\]', jaeger["tracesToLogsV2"]["query"]))
    assert used == {names.ITEM_ID}
    (field,) = loki["derivedFields"]
    assert (field["matcherRegex"], field["datasourceUid"]) == ("trace_id", "genesis-jaeger")


def test_exemplars_are_kept_and_log_lines_find_their_way(services: dict[str, Any]) -> None:
    """Flags, paths and addresses without which a link of the above leads nowhere, in silence."""
    assert "--enable-feature=exemplar-storage" in services["prometheus"]["command"]
    collector = read(ROOT / "compose" / "collector.yaml")
    (folder,) = {Path(each).parent for each in collector["receivers"]["filelog"]["include"]}
    assert f"logs:{folder}:ro" in services["collector"]["volumes"]
    for name, each in services.items():
        if each.get("hostname") == name:
            assert f"logs:{folder}" in each["volumes"]
            assert f"2>> {folder}/" in each["command"][-1]
            assert each["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4318"
            assert each["environment"]["GENESIS_REDIS_URL"] == "redis://redis:6379"
    assert collector["exporters"]["otlphttp"]["endpoint"] == "http://loki:3100/otlp"
    copied = [each["from"] for each in collector["receivers"]["filelog"]["operators"] if "from" in each]
    assert 'attributes.line["service.name"]' in copied


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
