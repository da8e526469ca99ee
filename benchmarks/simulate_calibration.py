"""How often the thresholds of `bge calibrate` keep their promise, on simulated pairs whose true rates are known.

python benchmarks/simulate_calibration.py [--repetitions 2000] [--only few bad] [--processes 2]

Prints a table in markdown: one row for each distribution and number of groups, the names as in `DISTRIBUTIONS`. A
promise is kept if the true rate at the threshold is what was promised. Where no promise could be made there is none to
break, so `kept` is the share of the promises that were made, with its exact 95 % interval, and `made` says how often
one was. `reaches` is what the caution costs: the mean true rate at the threshold (of recall, the mean share missed)
as a share of the promised one; of precision, the mean true recall, as a share of that where the precision is just the
promised one.

`--alternatives` instead compares the test that thresholds are chosen by with others that are right for few groups, and
looks for distributions for which its confidence does not hold.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import Pool

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binom, multinomial, norm

from bgekit.errors import DataError
from bgekit.evaluation.thresholds import ScoredPairs, chance, promised

#: Of each promise.
CONFIDENCE = 0.95

Generator = np.random.Generator
Truth = Callable[[float], float]
#: (generator, size) -> false-positive rates of so many queries.
Rates = Callable[[Generator, int], np.ndarray]


@dataclass(frozen=True)
class Distribution:
    """Pairs that can be drawn, and their true rate at any threshold.

    Attributes:
        name: In the table.
        target: `false_positive_rate` or `precision`.
        wanted: The rate that is promised.
        draw: Pairs of a repetition.
        true: The rate at a threshold.
        reached: What the threshold reaches, 1 for what the best one would.
        prevalence: Of precision.
    """

    name: str
    target: str
    wanted: float
    draw: Callable[[Generator], ScoredPairs]
    true: Truth
    reached: Truth
    prevalence: float | None = None


def grouped(similarity: np.ndarray, query: np.ndarray, related: np.ndarray | None = None) -> ScoredPairs:
    """Pairs of queries with documents of their own."""
    related = np.zeros(len(similarity), dtype=bool) if related is None else related
    return ScoredPairs(similarity, related, np.stack([query, np.arange(len(query))]))


def sized(groups: int, pairs: int, unequal: bool, rng: Generator) -> np.ndarray:
    """Number of the query of each pair: as many pairs a query, or a geometric number with this mean."""
    return np.repeat(np.arange(groups), rng.geometric(1 / pairs, groups) if unequal else pairs)


def sizes(groups: int, pairs: int, unequal: bool) -> str:
    """In the name of a distribution."""
    return f"{groups} x {'about ' if unequal else ''}{pairs}"


def of_rates(name: str, wanted: float, groups: int, pairs: int, rates: Rates, *, unequal: bool = False) -> Distribution:
    """Queries whose false-positive rates at similarity 0 are drawn: it is where the mean rate is just the wanted one.

    A pair of a query with the rate p reaches the similarity x with the chance min(1, p exp(-x)).

    Args:
        name: Of the distribution.
        wanted: Mean of the rates.
        groups: Number of queries.
        pairs: Of each.
        rates: Of that mean.
        unequal: Queries have a geometric number of pairs.
    """
    many = rates(np.random.default_rng(1), 50_000)

    def draw(rng: Generator) -> ScoredPairs:
        query = sized(groups, pairs, unequal, rng)
        found = np.maximum(rates(rng, groups), 1e-12)
        return grouped(np.log(found)[query] - np.log(rng.random(len(query))), query)

    def true(value: float) -> float:
        # At 0 it is exactly the wanted one; elsewhere a mean over many queries tells how much is reached.
        return float(np.minimum(many * np.exp(-value), 1).mean() / many.mean()) * wanted

    return Distribution(
        f"{name}, {sizes(groups, pairs, unequal)}",
        "false_positive_rate",
        wanted,
        draw,
        true,
        lambda value: true(value) / wanted,
    )


def beta_binomial(wanted: float, correlation: float) -> Rates:
    """Rates of a beta distribution: pairs of a query correlate so much as to whether they are errors."""
    total = 1 / correlation - 1
    return lambda rng, size: rng.beta(wanted * total, (1 - wanted) * total, size)


def few_bad(wanted: float, bad: float) -> Rates:
    """A few queries with this rate, which make 9 of 10 errors; the others share the tenth."""
    share = 0.9 * wanted / bad
    good = 0.1 * wanted / (1 - share)
    return lambda rng, size: np.where(rng.random(size) < share, bad, good)


def normal(name: str, wanted: float, draw: Callable[[Generator], ScoredPairs]) -> Distribution:
    """Similarities that are standard normal, however they depend on each other."""
    return Distribution(name, "false_positive_rate", wanted, draw, norm.sf, lambda value: norm.sf(value) / wanted)


def shifted(wanted: float, groups: int, pairs: int, correlation: float, *, unequal: bool = False) -> Distribution:
    """Each query has similarities of its own level: a normal part that all of its pairs share."""

    def draw(rng: Generator) -> ScoredPairs:
        query = sized(groups, pairs, unequal, rng)
        level = np.sqrt(correlation) * rng.normal(size=groups)
        return grouped(level[query] + np.sqrt(1 - correlation) * rng.normal(size=len(query)), query)

    return normal(f"normal levels ({correlation:g} of the variance), {sizes(groups, pairs, unequal)}", wanted, draw)


def alone(wanted: float, pairs: int) -> Distribution:
    """Pairs that share no text."""
    return normal(
        f"independent pairs, {pairs:,}", wanted, lambda rng: grouped(rng.normal(size=pairs), np.arange(pairs))
    )


def missed(wanted: float, groups: int, pairs: int, correlation: float) -> Distribution:
    """Related pairs of queries that have levels of their own; `reaches` is of the share that is missed."""
    unrelated = shifted(1 - wanted, groups, pairs, correlation)

    def draw(rng: Generator) -> ScoredPairs:
        found = unrelated.draw(rng)
        return replace(found, related=~found.related)

    return Distribution(
        unrelated.name, "recall", wanted, draw, norm.sf, lambda value: norm.cdf(value) / (1 - wanted)
    )  # fmt: skip


def of_one_list(texts: int, pairs: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the texts of random pairs."""
    first, second = rng.integers(0, texts, (2, 2 * pairs))
    different = np.flatnonzero(first != second)[:pairs]
    return first[different], second[different]


def shared(wanted: float, texts: int, pairs: int) -> Distribution:
    """Random pairs of texts of one list, half of whose variance comes from the two texts."""

    def draw(rng: Generator) -> ScoredPairs:
        first, second = of_one_list(texts, pairs, rng)
        level = 0.5 * rng.normal(size=texts)
        similarity = level[first] + level[second] + np.sqrt(0.5) * rng.normal(size=pairs)
        return ScoredPairs(similarity, np.zeros(pairs, dtype=bool), np.stack([first, second]), True)

    return normal(f"random pairs of {texts} texts, half of the variance, {pairs:,}", wanted, draw)


def hubs(wanted: float, texts: int, pairs: int) -> Distribution:
    """Random pairs of texts of one list, a few of which are near to every other one and make 9 of 10 errors."""
    bad = 0.9 * wanted
    good = 0.1 * wanted / (1 - bad)

    def draw(rng: Generator) -> ScoredPairs:
        first, second = of_one_list(texts, pairs, rng)
        hub = rng.random(texts) < 1 - np.sqrt(1 - bad)
        rates = np.where(hub[first] | hub[second], 1.0, good)
        return ScoredPairs(
            np.log(rates) - np.log(rng.random(pairs)), np.zeros(pairs, dtype=bool), np.stack([first, second]), True
        )

    def true(value: float) -> float:
        return bad * min(1, np.exp(-value)) + (1 - bad) * min(1, good * np.exp(-value))

    return Distribution(
        f"random pairs of {texts} texts, a few near to all, {pairs:,}", "false_positive_rate", wanted, draw, true,
        lambda value: true(value) / wanted,
    )  # fmt: skip


def precise(wanted: float, groups: int, pairs: int, correlation: float, *, unequal: bool = False) -> Distribution:
    """Queries with levels of their own, where one pair in five is related and 2.5 deviations more similar."""
    share, gap = 0.2, 2.5

    def draw(rng: Generator) -> ScoredPairs:
        query = sized(groups, pairs, unequal, rng)
        related = rng.random(len(query)) < share
        level = np.sqrt(correlation) * rng.normal(size=groups)
        noise = np.sqrt(1 - correlation) * rng.normal(size=len(query))
        return grouped(gap * related + level[query] + noise, query, related)

    def true(value: float) -> float:
        recall, false = norm.sf(value, gap), norm.sf(value)
        return float(share * recall / (share * recall + (1 - share) * false))

    best = float(norm.sf(brentq(lambda value: true(value) - wanted, -3, 12), gap))
    return Distribution(
        f"normal levels ({correlation:g} of the variance), a fifth related, {sizes(groups, pairs, unequal)}",
        "precision", wanted, draw, true, lambda value: float(norm.sf(value, gap)) / best, share,
    )  # fmt: skip


@cache
def distributions() -> list[Distribution]:
    """All that the table has."""
    found = [alone(0.01, 5000), alone(0.05, 1000)]
    for wanted in (0.01, 0.05):
        for groups, pairs in ((50, 100), (100, 50), (300, 30), (1000, 10)):
            found.append(of_rates("beta-binomial 0.1", wanted, groups, pairs, beta_binomial(wanted, 0.1)))
    for groups, pairs in ((100, 50), (300, 30)):
        found += [
            of_rates("beta-binomial 0.01", 0.05, groups, pairs, beta_binomial(0.05, 0.01)),
            of_rates("beta-binomial 0.5", 0.05, groups, pairs, beta_binomial(0.05, 0.5)),
            of_rates("beta-binomial 0.1", 0.05, groups, pairs, beta_binomial(0.05, 0.1), unequal=True),
            of_rates("few bad queries (half of their pairs)", 0.05, groups, pairs, few_bad(0.05, 0.5)),
            of_rates("few bad queries (all of their pairs)", 0.05, groups, pairs, few_bad(0.05, 1.0)),
            shifted(0.05, groups, pairs, 0.3),
        ]
    return [
        *found,
        of_rates("few bad queries (half of their pairs)", 0.01, 300, 30, few_bad(0.01, 0.5)),
        of_rates("few bad queries (all of their pairs)", 0.01, 1000, 10, few_bad(0.01, 1.0)),
        of_rates("beta-binomial 0.1", 0.1, 50, 100, beta_binomial(0.1, 0.1)),
        shared(0.05, 400, 3000),
        hubs(0.05, 400, 3000),
        hubs(0.01, 1200, 5000),
        missed(0.9, 50, 100, 0.3),
        missed(0.9, 300, 10, 0.3),
        precise(0.8, 50, 100, 0.3),
        precise(0.5, 50, 20, 0.3),
        precise(0.8, 300, 10, 0.3),
        precise(0.8, 300, 10, 0.3, unequal=True),
        precise(0.9, 2000, 1, 0.0),
    ]


def thresholds(task: tuple[int, range]) -> list[float]:
    """The thresholds that are promised in some repetitions, without those where no promise can be made."""
    drawn = distributions()[task[0]]
    found = []
    for seed in task[1]:
        pairs = drawn.draw(np.random.default_rng(seed))
        try:
            value = promised(
                pairs, drawn.target, drawn.wanted, confidence=CONFIDENCE, prevalence=drawn.prevalence
            )  # fmt: skip
        except DataError:
            continue
        found.append(value)
    return found


def row(drawn: Distribution, found: list[float], repetitions: int) -> str:
    """A row of the table."""
    rates = np.array([drawn.true(value) for value in found])
    kept = int(
        np.sum(rates >= drawn.wanted if drawn.target != "false_positive_rate" else rates <= drawn.wanted + 1e-12)
    )
    cells = [drawn.name, f"{drawn.target.replace('_', ' ')} {drawn.wanted:.0%}", f"{len(found) / repetitions:.1%}"]
    if not found:
        return f"| {' | '.join(cells)} | | | |"
    low = beta.ppf(0.025, kept, len(found) - kept + 1) if kept else 0.0
    high = beta.ppf(0.975, kept + 1, len(found) - kept) if kept < len(found) else 1.0
    cells += [f"{kept / len(found):.1%} ({low:.1%} to {high:.1%})", "yes" if high >= CONFIDENCE else "**no**"]
    return f"| {' | '.join(cells)} | {np.mean([drawn.reached(value) for value in found]):.2f} |"


def betting(rates: np.ndarray, share: float) -> float:
    """p-value of a mean of at least `share`: one by the capital of bets against it, a mean over stakes."""
    stakes = np.linspace(0.05, 1, 20)[:, None] * (1 - 1e-9) / (1 - share)
    return float(1 / np.exp(np.log1p(stakes * (share - rates)).sum(axis=1)).mean())


def binomial(rates: np.ndarray, share: float) -> float:
    """p-value of the binomial test with a group for a trial, and the sum of the shares for the number of errors."""
    return float(beta.sf(share, rates.sum() + 1, len(rates) - rates.sum()))


def hoeffding_bentkus(rates: np.ndarray, share: float) -> float:
    """p-value of Learn then Test (Angelopoulos et al. 2021)."""
    mean, size = float(rates.mean()), len(rates)
    if mean >= share:
        return 1.0
    divergence = (mean * np.log(mean / share) if mean else 0.0) + (1 - mean) * np.log((1 - mean) / (1 - share))
    return float(min(np.exp(-size * divergence), np.e * binom.cdf(np.ceil(size * mean), size, share)))


def gaffke(rates: np.ndarray, share: float) -> float:
    """p-value of the project's own test."""
    return chance(rates, 1 - rates, share)


def lowest(similarity: np.ndarray, share: float, test: Callable[[np.ndarray, float], float]) -> float:
    """The lowest threshold [groups, pairs] that passes a test; above all similarities where none does."""
    ordered = np.append(np.inf, np.sort(similarity, axis=None)[::-1])
    passing, failing = 0, len(ordered)
    while failing - passing > 1:
        middle = (passing + failing) // 2
        passes = test((similarity >= ordered[middle]).mean(axis=1), share) <= 1 - CONFIDENCE
        passing, failing = (middle, failing) if passes else (passing, middle)
    return float(ordered[passing])


def alternatives() -> None:
    """What other tests reach with groups of 30 pairs of normal levels, 30 % of the variance: a table."""
    cases = [(0.05, 100), (0.05, 300), (0.05, 1000), (0.01, 1000)]
    print(f"| test | {' | '.join(f'{share:.0%}, {groups:,} groups' for share, groups in cases)} |")
    print("|---|" + "---|" * len(cases))
    for name, test, pairs in (
        ("Gaffke", gaffke, 30),
        ("betting, mixed over 20 stakes", betting, 30),
        ("one pair of each group, exact binomial", binomial, 1),
        ("binomial with the number of groups for that of pairs", binomial, 30),
        ("Hoeffding and Bentkus", hoeffding_bentkus, 30),
    ):
        cells = []
        for share, groups in cases:
            reached = []
            for seed in range(20):
                rng = np.random.default_rng(seed)
                level = np.sqrt(0.3) * rng.normal(size=(groups, 1))
                similarity = level + np.sqrt(0.7) * rng.normal(size=(groups, 30))
                reached.append(norm.sf(lowest(similarity[:, :pairs], share, test)) / share)
            cells.append(f"{np.mean(reached):.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def search(groups: int, share: float) -> float:
    """The largest chance found that the test refutes a mean that is true: shares of a, b and 1, all samples counted."""
    samples = np.array([(a, b, groups - a - b) for a in range(groups + 1) for b in range(groups + 1 - a)])
    most = 0.0
    for low in np.linspace(0, 0.9 * share, 7):
        for middle in np.linspace(0.05, 0.95, 10):
            values = np.array([low, middle, 1.0])
            if low >= middle:
                continue
            refuted = [each for each in samples if gaffke(np.repeat(values, each), share) <= 1 - CONFIDENCE]
            for weight in np.linspace(0, 0.9, 46):
                high = (share - low - weight * (middle - low)) / (1 - low)
                if refuted and 0 <= high <= 1 - weight:
                    chances = multinomial.pmf(refuted, groups, [1 - weight - high, weight, high])
                    most = max(most, float(chances.sum()))
    return most


def table(repetitions: int, processes: int, only: str = "") -> Iterator[str]:
    """The lines of the table of promises."""
    yield f"| distribution | promise | made | kept ({CONFIDENCE:.0%} are promised) | holds | reaches |"
    yield "|---|---|---|---|---|---|"
    parts = [range(first, min(first + 50, repetitions)) for first in range(0, repetitions, 50)]
    with Pool(processes) as pool:
        for number, drawn in enumerate(distributions()):
            if only in drawn.name:
                found = pool.map(thresholds, [(number, part) for part in parts])
                yield row(drawn, [value for part in found for value in part], repetitions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--only", default="", help="distributions whose name has this in it")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--alternatives", action="store_true", help="compare tests, and search for counterexamples")
    args = parser.parse_args()
    if args.alternatives:
        alternatives()
        for groups, share in ((10, 0.3), (20, 0.2), (30, 0.1)):
            print(
                f"{groups} groups, {share:.0%}: fails in at most {search(groups, share):.1%} of the samples", flush=True
            )
        return
    for line in table(args.repetitions, args.processes, args.only):
        print(line, flush=True)


if __name__ == "__main__":
    main()
