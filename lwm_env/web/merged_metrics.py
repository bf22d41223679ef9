"""The Prometheus metrics of several hosts as one page."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

INGRESS = "ingress"  # the label `host` of the ingress's own figures


class _Merged:
    """What `generate_latest` reads from a registry."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def merge(texts: Mapping[str, str], own: CollectorRegistry, up: Mapping[str, bool]) -> bytes:
    """One page in Prometheus's format whose samples all have the label `host`.

    Args:
        texts: the pages of hosts.
        own: the figures of the ingress.
        up: whether each host is reached, told as `lwm_host_up`.
    """
    reached = GaugeMetricFamily("lwm_host_up", "1 while the ingress reaches the host", labels=["host"])
    for host, value in up.items():
        reached.add_metric([host], float(value))
    merged: dict[str, Metric] = {}
    for host, text in {**texts, INGRESS: generate_latest(own).decode()}.items():
        for family in text_string_to_metric_families(text):
            into = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                into.samples.append(sample._replace(labels={**sample.labels, "host": host}))
    return generate_latest(_Merged([reached, *merged.values()]))
