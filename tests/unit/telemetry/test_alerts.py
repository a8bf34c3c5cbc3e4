import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker_worker.telemetry.metrics import MetricsSubscriber

ALERTS = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text(encoding="utf-8")
RULES = re.findall(r"```yaml\n(.*?)```\n\n(.*?)(?=\n## |\Z)", ALERTS, re.DOTALL)


def test_every_metric_that_the_alerts_name_exists() -> None:
    exposition = MetricsSubscriber(names=["a"], queues=["b"]).exposition().decode()
    known = {family.name for family in text_string_to_metric_families(exposition)}
    known |= {f"{family.name}_total" for family in text_string_to_metric_families(exposition)}

    named = set(re.findall(r"\bbroker_worker_\w+", ALERTS))
    sampled = {
        f"broker_worker_{name}"
        for name in re.findall(r"`((?!broker_worker)\w+_seconds|\w+_rows|queue_\w+|open_\w+)`", ALERTS)
    }

    assert len(named) > 8
    assert (named | sampled) - {"broker_worker_"} <= known


def test_every_metric_is_documented_and_no_other() -> None:
    exposition = MetricsSubscriber(names=["a"], queues=["b"]).exposition().decode()
    families = [
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(exposition)
    ]

    documented = re.findall(r"^\| `(\w+)` \|", ALERTS, re.MULTILINE)

    ours = [name for name in families if name.startswith("broker_worker_")]
    assert sorted(f"broker_worker_{name}" for name in documented) == sorted(ours)


def test_there_are_nine() -> None:
    assert len(RULES) == 9


@pytest.mark.parametrize(("rule", "text"), RULES, ids=map(str, range(len(RULES))))
def test_every_alert_says_when_how_urgent_and_what_to_do(rule: str, text: str) -> None:
    assert re.match(r"- alert: BrokerWorker\w+\n  expr: ", rule)
    assert re.search(r"^  for: \d+m$", rule, re.MULTILINE)
    assert re.search(r"^  labels: \{severity: (page|ticket)\}$", rule, re.MULTILINE)
    assert re.search(r"^    summary: \S", rule, re.MULTILINE)
    assert len(text) > 200
