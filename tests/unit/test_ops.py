"""What docs/ops ships for the operator fits the program: metrics exist, images are pinned, files are there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from capture.live.base import LiveCounters
from netcls.counters import Counters
from netcls.metrics import exposition, registry_of

yaml = pytest.importorskip("yaml")
pytest.importorskip("prometheus_client")

ROOT = Path(__file__).parents[2]
OPS = ROOT / "docs" / "ops"
pytestmark = pytest.mark.skipif(not (ROOT / "Dockerfile").exists(), reason="not run from a checkout")

YAML_FILES = sorted(str(f.relative_to(OPS)) for f in OPS.rglob("*.y*ml"))


def exported_names() -> set[str]:
    """Every series that a running appliance shows, from the exporter itself."""
    histogram = {"bounds": [0.1], "counts": [1, 0], "sum": 0.05}
    status = {
        "flows_open": 1,
        "flow_memory_bytes": 1,
        "flow_memory_limit_bytes": 2,
        "config_reload_success": 1,
        "uptime_s": 1.0,
        "overload_step": 0,
        "predictions": {"web": 1},
        "queues": {"ready": {"depth": 0, "limit": 1, "dropped": 0}},
        "sinks": {"file": {"sent": 1, "dropped": 0, "retried": 0, "failed": 0, "undelivered": 0, "up": True}},
        "histograms": {"latency_s": {"model": histogram}, "probability": histogram, "batch_size": histogram},
    }
    books = Counters()
    books.interfaces["eth0"] = LiveCounters()
    appliance: Any = SimpleNamespace(counters=books, checkpoint=None, status=lambda: status)
    text = exposition(registry_of(appliance)).decode()
    series = set(re.findall(r"^(netcls_[a-z_]+)(?:\{| )", text, re.MULTILINE))
    # A counter without a value yet shows only its type.
    counters = re.findall(r"^# TYPE (netcls_[a-z_]+?)(?:_total)? counter$", text, re.MULTILINE)
    return series | {f"{name}_total" for name in counters}


def named_in(text: str) -> set[str]:
    return set(re.findall(r"netcls_[a-z_]+", text))


def test_each_metric_of_the_dashboard_exists() -> None:
    dashboard = json.loads((OPS / "grafana.json").read_text())
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    expressions += [v["query"]["query"] for v in dashboard["templating"]["list"]]
    assert len(expressions) > 20
    assert named_in("\n".join(expressions)) - exported_names() == set()


def test_panels_do_not_lie_over_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads((OPS / "grafana.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_each_metric_of_the_alerts_exists_and_each_alert_says_what_to_do() -> None:
    (group,) = yaml.safe_load((OPS / "alerts.yml").read_text())["groups"]
    guide = (OPS / "guide.md").read_text()
    for rule in group["rules"]:
        assert named_in(rule["expr"]) - exported_names() == set(), rule["alert"]
        assert {"summary", "description"} == set(rule["annotations"])
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        for name in named_in(rule["expr"]):
            assert re.sub(r"^netcls_|_bucket$", "", name) in guide, name


def test_the_guide_explains_each_exported_counter() -> None:
    guide = (OPS / "guide.md").read_text()
    for name in exported_names():
        plain = re.sub(r"^netcls_|_(bucket|count|sum|created)$", "", name)
        assert plain in guide, f"docs/ops/guide.md says nothing of {name}"


@pytest.mark.parametrize("name", YAML_FILES)
def test_yaml_can_be_read(name: str) -> None:
    assert isinstance(yaml.safe_load((OPS / name).read_text()), dict)


def services() -> dict[str, Any]:
    parts: dict[str, Any] = yaml.safe_load((OPS / "compose.yml").read_text())["services"]
    return parts


def test_images_are_pinned() -> None:
    assert set(services()) == {"netcls", "kafka", "prometheus", "grafana"}
    for name, service in services().items():
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"]), name


def test_mounted_files_exist_and_are_read_only() -> None:
    mounts = [m for service in services().values() for m in service.get("volumes", []) if m.startswith("./")]
    assert len(mounts) == 5
    for mount in mounts:
        source, _, mode = mount.split(":")
        assert (OPS / source).is_file(), source
        assert mode == "ro"


def test_the_parts_find_each_other_on_loopback() -> None:
    parts = services()
    command = parts["netcls"]["command"]
    assert "--listen=127.0.0.1:8710" in command
    scraped = yaml.safe_load((OPS / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == ["127.0.0.1:8710"]
    assert scraped["job_name"] == "netcls", "the alerts name it"
    (kafka,) = [word for word in command if word.startswith("--output=kafka://")]
    address = re.match(r"--output=kafka://([^/]+)/", kafka)
    assert address is not None
    assert parts["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{address[1]}"
    source = yaml.safe_load((OPS / "grafana" / "datasource.yml").read_text())["datasources"][0]
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in parts["prometheus"]["command"]
    dashboard = (OPS / "grafana.json").read_text()
    assert set(re.findall(r'"uid": "([a-z-]+prometheus)"', dashboard)) == {source["uid"]}


def test_the_daemons_command_is_one_that_netcls_takes() -> None:
    from netcls.cli.serve import serve

    words = [re.sub(r"\$\{NETCLS_IFACE:.*\}", "eth0", word) for word in services()["netcls"]["command"]]
    assert words[:2] == ["netcls-capture", "serve"]
    with serve.make_context("serve", words[2:]) as ctx:
        assert ctx.params["iface"] == ("eth0",)


def test_the_container_has_one_capability_and_no_root() -> None:
    service = services()["netcls"]
    assert (service["cap_drop"], service["cap_add"]) == (["ALL"], ["NET_RAW"])
    assert service["read_only"] is True
    assert service["user"] == "10001:10001"
    assert "privileged" not in service
    image = (ROOT / "Dockerfile").read_text()
    assert "USER netcls" in image
    assert "--uid 10001" in image
    assert "PYTHONSAFEPATH=1" in image
    assert re.findall(r"setcap (\S+) (\S+)", image) == [("cap_net_raw+ep", "/opt/netcls/bin/python-capture")]
    assert 'CMD ["/opt/netcls/bin/netcls", "ctl", "status"]' in image
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", image, re.MULTILINE):
        for word in source.split():
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize(
    ("words", "started"),
    [
        (["classify", "a"], ["netcls", "classify", "a"]),
        (["netcls-capture", "sniff"], ["netcls-capture", "sniff"]),
        (["--help"], ["netcls", "--help"]),
        ([], ["netcls"]),
    ],
)
def test_the_container_starts_netcls_with_a_cache_of_its_own(
    words: list[str], started: list[str], tmp_path: Path
) -> None:
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm" / "kernel.nbc").write_bytes(b"code")
    text = (OPS / "container-start.sh").read_text().replace("/opt/netcls/numba", str(tmp_path / "warm"))
    (tmp_path / "start").write_text(text)
    for name in ("netcls", "netcls-capture"):
        program = (
            '#!/bin/sh\necho "$(basename "$0") $*"\nls "$NUMBA_CACHE_DIR"\nstat -c %a "$NUMBA_CACHE_DIR"\n'
        )
        (tmp_path / name).write_text(program)
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [shutil.which("sh") or "sh", str(tmp_path / "start"), *words],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *rest = done.stdout.splitlines()
    assert first.split() == started
    assert rest == ["kernel.nbc", "700"]


@pytest.mark.parametrize("name", ["vector.yaml", "filebeat.yml"])
def test_the_mappings_name_only_fields_that_events_have(name: str) -> None:
    from netcls.event import Event
    from netcls.flat import column_names

    text = (OPS / name).read_text()
    pattern = r"\be\.([a-z_.0-9]+)" if name == "vector.yaml" else r"from: eve\.([a-z_.0-9]+)"
    fields = {f.rstrip(".") for f in re.findall(pattern, text)}
    assert len(fields) > 12
    flat = set(column_names()) | set(Event.__struct_fields__)
    assert {f for f in fields if f.replace(".", "_") not in flat} == set()
