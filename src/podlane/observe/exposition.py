"""Metrics in Prometheus' text format 0.0.4. Pure.

Names follow Prometheus' own advice (prometheus.io/docs/practices/naming): base units, `_total` for counters.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias, TypeVar

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

WORK_BUCKETS_S: Final = tuple(0.0001 * 2**n for n in range(18))
"""Of work that takes 0.1 ms to 13 s."""

Labels: TypeAlias = Mapping[str, str]
V = TypeVar("V", bound="float | Histogram")


class Histogram:
    """Prometheus' cumulative histogram. buckets: upper bounds, rising."""

    def __init__(self, buckets: Sequence[float]) -> None:
        self._buckets = tuple(buckets)
        self._counts = [0] * (len(self._buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._buckets, value)] += 1
        self._sum += value

    def samples(self) -> Iterator[tuple[str, Labels, float]]:
        """(suffix of the name, labels, value)"""
        running = 0
        for bound, count in zip((*self._buckets, None), self._counts, strict=True):
            running += count
            yield "_bucket", {"le": "+Inf" if bound is None else f"{bound:g}"}, running
        yield "_sum", {}, self._sum
        yield "_count", {}, running


class Histograms:
    """One for each combination of labels' values, made when it is first needed."""

    def __init__(self, buckets: Sequence[float], *names: str) -> None:
        self._buckets, self._names = tuple(buckets), names
        self._found: dict[tuple[str, ...], Histogram] = {}

    def of(self, *values: str) -> Histogram:
        found = self._found.get(values)
        if found is None:
            found = self._found[values] = Histogram(self._buckets)
        return found

    @property
    def samples(self) -> list[tuple[Labels, Histogram]]:
        return labelled(self._names, self._found)


class Metric(NamedTuple):
    """name: without the daemon's prefix. kind: gauge, counter or histogram. samples: (labels, value)."""

    name: str
    kind: str
    help: str
    samples: Iterable[tuple[Labels, float | Histogram]]


def gauge(name: str, help_: str, value: float) -> Metric:
    """With one sample, which has no labels."""
    return Metric(name, "gauge", help_, [({}, value)])


def counter(name: str, help_: str, value: float) -> Metric:
    """With one sample, which has no labels."""
    return Metric(name, "counter", help_, [({}, value)])


def labelled(names: Sequence[str], values: Mapping[tuple[str, ...], V]) -> list[tuple[Labels, V]]:
    """values: by the values of the labels `names`."""
    return [(dict(zip(names, key, strict=True)), value) for key, value in sorted(values.items())]


def exposition(prefix: str, metrics: Iterable[Metric]) -> str:
    return "".join(_exposition(prefix, metric) for metric in metrics)


def _exposition(prefix: str, metric: Metric) -> str:
    name = prefix + metric.name
    lines = [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
    for labels, value in metric.samples:
        if isinstance(value, Histogram):
            lines += [_line(name + suffix, {**labels, **more}, n) for suffix, more, n in value.samples()]
        else:
            lines.append(_line(name, labels, value))
    return "\n".join(lines) + "\n"


def _line(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {_number(value)}" if inner else f"{name} {_number(value)}"


def _number(value: float) -> str:
    """Exact, and without a point where there is nothing behind it."""
    return str(int(value)) if value == int(value) else repr(value)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
