"""What train.py measured, as markdown tables and as a plot."""

from __future__ import annotations

import statistics
from typing import Any

Row = dict[str, Any]


def table(results: Row) -> str:
    return "\n".join(speed_table(results) if "contenders" in results else memory_table(results))


def speed_table(results: Row) -> list[str]:
    rates = {dtype: statistics.median(values) for dtype, values in results["rates"].items()}
    rounds = results["rounds"]
    tokens = sum(each["tokens"] for each in rounds)
    flops = sum(each["linear_flops"] + each["attention_flops"] for each in rounds) / tokens
    speeds = {
        name: statistics.median(
            each["tokens"] / turn["seconds"] for each, turn in zip(rounds, facts["turns"], strict=False)
        )
        for name, facts in results["contenders"].items()
        if facts["turns"]
    }
    lines = [
        f"CPU: {results['cpu']}. {results['model']} on {results['data']}: batches of {results['batch']} rows with "
        f"{results['group']} passages, {results['steps']} steps, {tokens / len(rounds):,.0f} real tokens timed a "
        f"round, {len(rounds)} rounds.",
        "",
        f"Matrix rate: fp32 {rates['float32'] / 1e9:,.0f}, bf16 {rates['bfloat16'] / 1e9:,.0f} GFLOP/s; "
        f"a token costs {flops / 1e6:,.0f} MFLOP.",
        "",
        "| | tokens/s | bgekit in the same format is | bgekit bf16 is | of its format's limit | score after training "
        "| loss of the last steps | peak, MiB | first losses without dropout |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, speed in speeds.items():
        facts = results["contenders"][name]
        dtype, counterpart = ("bfloat16", "bgekit bf16") if "bf16" in name else ("float32", "bgekit")
        best = f"{speeds['bgekit bf16'] / speed:.2f}x" if "bgekit bf16" in speeds else ""
        ours = f"{speeds[counterpart] / speed:.2f}x" if counterpart in speeds else ""
        last = statistics.mean(statistics.mean(turn["losses"][-10:]) for turn in facts["turns"])
        peak = max(turn["peak_mib"] for turn in facts["turns"])
        first = ", ".join(f"{loss:.4f}" for loss in facts["losses_without_dropout"])
        lines.append(
            f"| {name} | {speed:,.0f} | {ours} | {best} | {speed * flops / rates[dtype]:.0%} "
            f"| {spread(facts['scores'])} | {last:.4f} | {peak:,.0f} | {first} |"
        )
    if results["start"]:
        lines += ["", f"The start scores {results['start'][0]:.2f}."]
    busiest = max(turn["others"] for facts in results["contenders"].values() for turn in facts["turns"])
    return [*lines, "", f"Other processes used at most {busiest:.0%} of the CPU during a timed turn."]


def spread(scores: list[float]) -> str:
    if not scores:
        return ""
    deviation = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.2f}{deviation}"


def memory_table(results: Row) -> list[str]:
    lines = [
        f"{results['model']} on {results['data']}, chunks of {results['chunk']}; one step, a positive and a negative "
        "a row.",
        "",
        "| batch | peak, MiB | of the smallest batch | own pages, MiB | of the smallest batch "
        "| without gradient cache, MiB |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    sizes = sorted({*map(int, results["cached"]), *map(int, results["plain"])})
    least = min(results["cached"].values(), key=lambda facts: facts["peak_mib"], default=None)
    for size in sizes:
        cached, plain = results["cached"].get(str(size)), results["plain"].get(str(size))
        cells = ["", "", "", ""]
        if cached and least:
            ratio, own = (cached[name] / least[name] for name in ("peak_mib", "anonymous_mib"))
            cells = [f"{cached['peak_mib']:,.0f}", f"{ratio:.2f}", f"{cached['anonymous_mib']:,.0f}", f"{own:.2f}"]
        cells.append(f"{plain['peak_mib']:,.0f}" if plain else "")
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    return lines


def plot(results: Row, path: str) -> None:
    """Peak memory over the batch."""
    import charts

    figure, (axis,) = charts.subplots()
    for kind, label, colour in (("cached", "gradient cache", "#1f6f54"), ("plain", "plain step", "#b8b8b8")):
        points = sorted((int(size), facts["peak_mib"]) for size, facts in results[kind].items())
        axis.plot(*zip(*points, strict=True), "o-", color=colour, label=label) if points else None
    axis.set_xscale("log", base=2)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("rows of a batch, two passages each")
    axis.set_ylabel("peak memory, MiB")
    axis.legend(frameon=False)
    charts.save(figure, path)
