"""What a server counts, under the names of text-embeddings-inference, so that dashboards made for it work.

prometheus_client writes the page. Its own counters would be called `te_request_count_total`, so the numbers are kept
here and handed out by a collector.
"""

from __future__ import annotations

import bisect
import itertools
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

if TYPE_CHECKING:
    from .trace import Trace

#: Upper bounds of buckets, those of text-embeddings-inference (router/src/prometheus.rs).
SECONDS: Final = tuple(15e-6 * 1.5**step for step in range(35))
LENGTHS: Final = tuple(float(2**step) for step in range(17))
SIZES: Final = tuple(float(2**step) for step in range(13))
TOKENS: Final = tuple(float(2**step) for step in range(21))
#: Name -> what it counts.
COUNTERS: Final = {
    "te_request_count": "Requests",
    "te_request_success": "Requests that were answered",
    "te_request_failure": "Requests that were refused or failed",
    "te_embed_count": "Inputs of requests to embedders",
    "te_embed_success": "Inputs whose vectors were answered",
    "te_predict_count": "Inputs of requests to rerankers",
    "te_predict_success": "Inputs whose scores were answered",
    "bge_truncated": "Inputs that were cut at the maximum length",
    "bge_shared": "Sequences that another request in the queue had, too, and which were computed once",
    "bge_tokens": "Tokens computed",
}
#: Name -> what it measures, and its buckets.
HISTOGRAMS: Final = {
    f"te_{of}_{what}": (said, SECONDS)
    for of in ("request", "embed", "predict")
    for what, said in (
        ("duration", "Seconds from a request to its answer"), ("tokenization_duration", "Seconds of tokenisation"),
        ("queue_duration", "Seconds in the queue"), ("inference_duration", "Seconds of computation"),
    )
} | {
    "te_request_input_length": ("Tokens of an input, the mean of each request", LENGTHS),
    "te_batch_next_size": ("Sequences of a batch", SIZES),
    "te_batch_next_tokens": ("Tokens of a batch", TOKENS),
}  # fmt: skip
#: prometheus_client names counters in its comments as OpenMetrics has them.
_COMMENT: Final = re.compile(rb"^(# (?:HELP|TYPE) te_\w+?)_total ", re.MULTILINE)


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        names = [*(f"{bound:.10g}" for bound in self.bounds), "+Inf"]
        return [(name, float(count)) for name, count in zip(names, itertools.accumulate(self.counts), strict=True)]


class Metrics:
    """Counters and histograms of a server; safe to use from several threads."""

    def __init__(self, gauges: Callable[[], Iterable[tuple[str, str, float]]] = lambda: ()) -> None:
        """All zero.

        Args:
            gauges: Gives what is measured when somebody asks: name, what it is, value.
        """
        self._gauges, self._lock = gauges, threading.Lock()
        self._counters: dict[str, dict[tuple[tuple[str, str], ...], float]] = {
            name: defaultdict(float) for name in COUNTERS
        }
        self._histograms = {name: _Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)  # type: ignore[arg-type]

    def shared(self, sequences: int) -> None:
        """Sequences of a request were in the queue already."""
        with self._lock:
            self._counters["bge_shared"][()] += sequences

    def batch(self, sequences: int, tokens: int) -> None:
        """A batch was computed."""
        with self._lock:
            self._histograms["te_batch_next_size"].observe(sequences)
            self._histograms["te_batch_next_tokens"].observe(tokens)
            self._counters["bge_tokens"][()] += tokens

    def finished(self, call: Trace, seconds: float) -> None:
        """A request has its answer, after so many seconds."""
        method = ("method", "batch" if call.batch else "single")
        with self._lock:
            counters = self._counters
            counters["te_request_count"][(method,)] += 1
            of = {True: "embed", False: "predict", None: ""}[call.embed]
            if of:
                counters[f"te_{of}_count"][()] += call.inputs
            if call.error is not None:
                counters["te_request_failure"][(("err", call.error.failure),)] += 1
                return
            counters["te_request_success"][(method,)] += 1
            if not of:
                return
            counters[f"te_{of}_success"][()] += call.inputs
            counters["bge_truncated"][()] += len(call.truncated)
            spent = {
                "duration": seconds, "tokenization_duration": call.tokenized, "queue_duration": call.queued,
                "inference_duration": call.computed,
            }  # fmt: skip
            for what, value in spent.items():
                self._histograms[f"te_request_{what}"].observe(value)
                self._histograms[f"te_{of}_{what}"].observe(value)
            if call.inputs:
                self._histograms["te_request_input_length"].observe(call.tokens / call.inputs)

    def collect(self) -> Iterator[Metric]:
        """All metrics, for prometheus_client."""
        with self._lock:
            counters = {name: dict(values) for name, values in self._counters.items()}
            histograms = {name: (each.buckets(), each.sum) for name, each in self._histograms.items()}
        for name, values in counters.items():
            metric = Metric(name, COUNTERS[name], "counter")
            for labels, value in (values or {(): 0.0}).items():
                if labels or name not in ("te_request_count", "te_request_success", "te_request_failure"):
                    metric.add_sample(name if name.startswith("te_") else f"{name}_total", dict(labels), value)
            yield metric
        for name, (buckets, total) in histograms.items():
            yield HistogramMetricFamily(name, HISTOGRAMS[name][0], buckets=buckets, sum_value=total)
        for name, said, value in self._gauges():
            yield GaugeMetricFamily(name, said, value=value)

    def page(self) -> bytes:
        """The page that Prometheus reads, in its text format 0.0.4."""
        page: Any = generate_latest(self._registry)
        return _COMMENT.sub(rb"\1 ", page)
