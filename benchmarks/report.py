"""What encode.py measured, as a markdown table and as a plot."""

from __future__ import annotations

import statistics
from typing import Any

#: What a row is compared with: 8 bits with 8 bits, 16 and 32 bits with each other.
OURS = {"int8": "bgekit int8", "16 or 32 bits": "bgekit"}
#: The peers that users get who choose nothing.
DEFAULTS = ("FlagEmbedding", "sentence-transformers")


def _speeds(model: dict[str, Any]) -> dict[str, float]:
    """Tokens/s of each peer that ran, best first; the median of its rounds."""
    ran = {peer: facts for peer, facts in model["peers"].items() if facts["seconds"]}
    speeds = {peer: model["tokens"] / statistics.median(facts["seconds"]) for peer, facts in ran.items()}
    return dict(sorted(speeds.items(), key=lambda item: -item[1]))


def _limit(model: dict[str, Any]) -> float:
    """Tokens/s if the faster matrix rate were kept for all linear layers and nothing else took time."""
    return float(max(map(statistics.median, model["rates"].values())) / model["flops_per_token"])


def _class(peer: str) -> str:
    return "int8" if "int8" in peer.split(",")[0].split() else "16 or 32 bits"


def _verdicts(speeds: dict[str, float], limit: float) -> list[str]:
    """A sentence for each class of number formats in which bgekit and somebody else were measured."""
    lines = []
    for kind, ours in OURS.items():
        others = [peer for peer in speeds if _class(peer) == kind and not peer.startswith("bgekit")]
        if ours not in speeds or not others:
            continue
        named = dict.fromkeys([*(peer for peer in DEFAULTS if peer in others), others[0]])
        ratios = ", ".join(f"{speeds[ours] / speeds[peer]:.2f}x {peer}" for peer in named)
        lines.append(f"{ours} is {ratios} (the best of them in {kind}), at {speeds[ours] / limit:.0%} of the limit.")
    return lines


def table(results: dict[str, Any]) -> str:
    lines = [f"CPU: {results['cpu']}"]
    for size, model in results["models"].items():
        fp32, bf16 = (statistics.median(model["rates"][dtype]) for dtype in ("float32", "bfloat16"))
        lines += [
            "",
            f"### bge-{size} shape: {model['texts']:,} texts, {model['tokens']:,} tokens",
            "",
            f"Matrix rate: bf16 {bf16 / 1e9:,.0f} GFLOP/s, fp32 {fp32 / 1e9:,.0f} GFLOP/s, ratio {bf16 / fp32:.1f}. "
            f"The limit is {_limit(model):,.0f} tokens/s.",
            "",
            "| | tokens/s | bgekit in as many bits is | of the limit | worst cosine | one text p50 / p95, ms "
            "| import, s | load, s | peak, MiB |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        speeds = _speeds(model)
        for peer, speed in speeds.items():
            facts = model["peers"][peer]
            imports, loads = (
                statistics.median(start[f"{step}_seconds"] for start in facts["starts"]) for step in ("import", "load")
            )
            latency = statistics.quantiles(facts["latency_ms"], n=20)
            counterpart = OURS[_class(peer)]
            ours = f"{speeds[counterpart] / speed:.2f}x" if counterpart in speeds else ""
            lines.append(
                f"| {peer} | {speed:,.0f} | {ours} | {speed / _limit(model):.0%} | {facts['worst_cosine']:.5f} "
                f"| {latency[9]:.1f} / {latency[18]:.1f} | {imports:.1f} | {loads:.1f} | {facts['peak_mib']:,.0f} |"
            )
        busiest = max((facts.get("others", 0.0) for facts in model["peers"].values()), default=0.0)
        lines += ["", f"Other processes used at most {busiest:.0%} of the CPU during a timed turn."]
        for verdict in _verdicts(speeds, _limit(model)):
            lines += ["", verdict]
        lines += [f"{peer} did not run." for peer, facts in model["peers"].items() if not facts["seconds"]]
    if results.get("growth"):
        lines += ["", "### As the corpus grows", "", "| texts | tokens/s | peak, MiB |", "|--:|--:|--:|"]
        for row in results["growth"]:
            lines.append(f"| {row['texts']:,} | {row['tokens_per_second']:,.0f} | {row['peak_mib']:,.0f} |")
    return "\n".join(lines)


def plot(results: dict[str, Any], path: str) -> None:
    import charts

    figure, axes = charts.subplots(len(results["models"]), 7, 4.2)
    for axis, (size, model) in zip(axes, results["models"].items(), strict=True):
        speeds = _speeds(model)
        names = list(reversed(speeds))
        colours = ["#1f6f54" if name.startswith("bgekit") else "#b8b8b8" for name in names]
        bars = axis.barh(names, [speeds[name] for name in names], color=colours)
        axis.bar_label(bars, [f"{speeds[name]:,.0f}" for name in names], padding=3, fontsize=8)
        best = _limit(model)
        axis.axvline(best, color="#444444", linestyle="--", linewidth=1)
        axis.text(best, -0.9, " matrix limit", fontsize=8, va="center", ha="right")
        axis.set_title(f"bge-{size} shape, tokens/s ({results['cpu']})", fontsize=10)
        axis.set_xlim(0, best * 1.08)
    charts.save(figure, path)
