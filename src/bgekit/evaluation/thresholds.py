"""The similarity from which a pair counts as related, such that a promised rate holds on pairs not seen yet.

A threshold that just reaches a rate on some pairs misses it on the next ones about half of the time. So the threshold
here is the lowest one for which the opposite (that the promise is broken) is refuted by an exact binomial test:

- A false-positive rate or a recall moves in one direction with the threshold, so one test at each threshold suffices
  (the bound of Clopper and Pearson, 1934).
- Precision does not. Thresholds are tested from strict to lenient. The error that is allowed is shared among four of
  them, and each one that passes hands its share on to the next (fallback procedure; Wiens 2003, "A fixed sequence
  Bonferroni procedure for testing multiple endpoints"). So the chance that any passes wrongly stays within the allowed
  one. Four starts find a threshold about as often as the best single start does on each kind of data, which differs.

Pairs that share a text are not independent. Their number is divided by the design effect of such groups before it
enters a test (as Korn and Graubard, 1998, do for surveys).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, DataError, import_extra

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]
Target: TypeAlias = Literal["precision", "false_positive_rate", "recall"]

#: Thresholds tried; neighbours differ by a few per cent in the pairs that reach them.
_TRIED: Final = 300
#: Thresholds among which the allowed error of a precision is shared.
_STARTS: Final = 4
#: Resamples of the bootstrap.
_RESAMPLES: Final = 1000


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of texts with their similarity.

    Attributes:
        similarity: [n].
        related: [n], whether the texts belong together.
        groups: [2, n], number of the first and of the second text: pairs with the same text are not independent.
    """

    similarity: Floats
    related: Booleans
    groups: Integers

    def __len__(self) -> int:
        return len(self.similarity)

    def part(self, chosen: Booleans | Integers) -> ScoredPairs:
        """Some of the pairs."""
        return ScoredPairs(self.similarity[chosen], self.related[chosen], self.groups[:, chosen])

    @property
    def share(self) -> float:
        """Share of related pairs."""
        return float(self.related.mean())


@dataclass(frozen=True)
class Rate:
    """A share of pairs with its confidence interval, and the counts behind it."""

    value: float
    low: float
    high: float
    count: int
    of: int


@dataclass(frozen=True)
class Threshold:
    """From which similarity on a pair counts as related.

    Attributes:
        target: What was wanted.
        wanted: The wanted rate.
        confidence: Of the promise (one-sided) and of the intervals (two-sided).
        value: The threshold that keeps the promise; pairs with at least this similarity count as related.
        plain: The threshold that just reaches the rate on these very pairs, without any promise.
        low: Lower end of the bootstrap interval of `plain`.
        high: Upper end of it.
        prevalence: Share of related pairs that precision was computed for, None where precision is unknown.
        precision: Share of related ones among the pairs that reach `value`, None without a prevalence.
        false_positive_rate: Share of the unrelated pairs that reach `value`, None without unrelated pairs.
        recall: Share of the related pairs that reach `value`, None without related pairs.
    """

    target: Target
    wanted: float
    confidence: float
    value: float
    plain: float
    low: float
    high: float
    prevalence: float | None
    precision: Rate | None
    false_positive_rate: Rate | None
    recall: Rate | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def choose_threshold(
    pairs: ScoredPairs, target: Target, wanted: float, *, confidence: float, prevalence: float | None, seed: int
) -> Threshold:
    """The threshold that keeps a promise on unseen pairs with a stated confidence, and what it achieves.

    Args:
        pairs: Pairs as the threshold will meet them: drawn at random, and not used to train the model.
        target: Which rate is wanted.
        wanted: The rate: at least this precision or recall, at most this false-positive rate.
        confidence: Chance that the promise holds, such as 0.95.
        prevalence: Share of related pairs where the threshold will be used; needed for a precision.
        seed: Of the bootstrap.

    Raises:
        DataError: there are too few pairs for the promise, or the precision is out of reach.
    """
    allowed = 1.0 - confidence
    similarity, related = pairs.similarity, pairs.related
    if target == "precision":
        if prevalence is None:
            raise ArgumentError("precision depends on the share of related pairs: give prevalence")
        value = _precise(pairs, _shifted(wanted, prevalence, pairs.share), wanted, allowed)
    elif target == "false_positive_rate":
        value = _quantile(similarity[~related], pairs.groups[:, ~related], wanted, allowed, "unrelated")
    else:
        # A related pair that is missed is a false positive of the reversed similarity.
        value = -_quantile(-similarity[related], pairs.groups[:, related], 1.0 - wanted, allowed, "related")
    interval = _bootstrap(pairs, target, wanted, prevalence, confidence, seed)
    reach = similarity >= value
    precision = None
    if prevalence is not None and reach.any():
        seen = rate(related[reach], pairs.groups[:, reach], confidence)
        value_there, low, high = (_shifted(each, pairs.share, prevalence) for each in (seen.value, seen.low, seen.high))
        precision = Rate(value_there, low, high, seen.count, seen.of)
    return Threshold(
        target, wanted, confidence, value, *interval, prevalence, precision,
        rate(reach[~related], pairs.groups[:, ~related], confidence) if not related.all() else None,
        rate(reach[related], pairs.groups[:, related], confidence) if related.any() else None,
    )  # fmt: skip


def rate(hits: Booleans, groups: Integers, confidence: float) -> Rate:
    """The share of hits with the interval of Clopper and Pearson, pairs that share a text counted for less."""
    beta = import_extra("scipy.stats", "eval").beta
    tail = (1.0 - confidence) / 2
    value = float(hits.mean())
    size = effective_size(hits, groups)
    low = float(beta.ppf(tail, value * size, size - value * size + 1)) if value > 0 else 0.0
    high = float(beta.ppf(1 - tail, value * size + 1, size - value * size)) if value < 1 else 1.0
    return Rate(value, low, high, int(hits.sum()), len(hits))


def effective_size(hits: Booleans, groups: Integers) -> float:
    """How many independent pairs would tell as much about the share of hits.

    The variance of a share is that of independent pairs, and what the sums over all pairs with the same first, and
    with the same second, text have beyond it (two-way clustering, Cameron, Gelbach and Miller 2011). Where all pairs
    are hits, or none is, nothing can be estimated: then only different texts count.
    """
    share, size = float(hits.mean()), float(len(hits))
    independent = share * (1 - share) / len(hits)
    beyond = 0.0
    for group in groups:
        _, member, counts = np.unique(group, return_inverse=True, return_counts=True)
        number = len(counts)
        if number == len(hits):
            continue
        if share in (0.0, 1.0) or number == 1:
            size = min(size, float(number))
            continue
        sums = np.bincount(member, hits - share)
        variance = number / (number - 1) * float(sums @ sums) / len(hits) ** 2
        beyond += max(variance - independent, 0.0)
    if independent:
        size = min(size, share * (1 - share) / (independent + beyond))
    return max(size, 1.0)


def _repeated(groups: Integers) -> Integers:
    """Those groupings in which any group has several pairs: the others change nothing, and are many to look at."""
    return groups[[len(np.unique(group)) < len(group) for group in groups]]


def needed_pairs(wanted: float, allowed: float) -> int:
    """Pairs without a single error that are needed to promise a share of errors of at most `wanted`."""
    return math.ceil(math.log(allowed) / math.log1p(-wanted))


def _quantile(similarity: Floats, groups: Integers, wanted: float, allowed: float, what: str) -> float:
    """The lowest threshold that at most a share `wanted` of the population reaches."""
    beta = import_extra("scipy.stats", "eval").beta
    order = np.argsort(-similarity, kind="stable")
    ordered, groups = similarity[order], _repeated(groups[:, order])
    best = None
    for count in _grid(0, len(ordered) - 1):
        value = _between(ordered, count)
        reach = ordered >= value
        size = effective_size(reach, groups)
        hits = float(reach.mean()) * size
        # Chance of so few hits or fewer, if the rate were just the wanted one.
        if beta.sf(wanted, hits + 1, size - hits) <= allowed:
            best = value
    if best is None:
        size = effective_size(np.zeros(len(ordered), dtype=bool), groups) if len(ordered) else 0
        need = needed_pairs(wanted, allowed)
        raise DataError(
            f"{len(ordered):,} {what} pairs ({size:,.0f} with texts of their own) are too few to promise a rate "
            f"of {wanted:.4g} with {100 * (1 - allowed):.4g}% confidence: at least {need:,} are needed, better "
            f"{4 * need:,}, or wish for less"
        )
    return best


def _precise(pairs: ScoredPairs, wanted: float, at_prevalence: float, allowed: float) -> float:
    """The lowest threshold whose precision among such pairs is at least `wanted`."""
    beta = import_extra("scipy.stats", "eval").beta
    promise = f"a precision of {at_prevalence:g} cannot be promised with {100 * (1 - allowed):.4g}% confidence"
    if not math.isclose(wanted, at_prevalence, rel_tol=0.01):
        promise += f" (at the given prevalence it means {wanted:.6g} among these pairs)"
    pairs = pairs.part(np.argsort(-pairs.similarity, kind="stable"))
    total, related, repeated = len(pairs), int(pairs.related.sum()), _repeated(pairs.groups)
    level = allowed / _STARTS
    least = needed_pairs(1 - wanted, level)
    if related < least:
        need = math.ceil(2 * least * total / max(related, 1))
        raise DataError(
            f"{promise}: {related:,} related pairs are too few, at least {least:,} must reach the threshold without an "
            f"unrelated one among them; about {need:,} pairs like these {total:,} are needed, or wish for less"
        )
    counts = list(_grid(least, total))
    # From the fewest pairs that can pass up to all related ones, which is too many unless the model never errs.
    ideal = np.geomspace(least, max(related, least), _STARTS + 1)[:-1]
    starts = [min(counts, key=lambda count: abs(count - place)) for place in ideal]
    tests = []
    for count in counts:
        value = _between(pairs.similarity, count)
        reach = pairs.similarity >= value
        hits, groups = pairs.related[reach], repeated[:, reach]
        if not len(hits):  # All of them are equally similar, and more than are asked for here.
            continue
        size, share = effective_size(hits, groups), float(hits.mean())
        # Chance of so many related ones or more, if the precision were just the wanted one.
        chance = float(beta.cdf(wanted, share * size, size - share * size + 1)) if share > 0 else 1.0
        tests.append((value, chance, starts.count(count), share, size))
    best, passed = None, 0
    for value, chance, begun, _, _ in tests:
        passed += begun
        if chance <= passed * level:
            best = value
        else:
            passed = 0
    if best is not None:
        return best
    # Guessed from shares that are drawn towards one half, as the best of many looks better than it is.
    guesses = [((share * size + 1) / (size + 2), size) for _, _, _, share, size in tests]
    needs = [_accepted_for(wanted, share, level) / size for share, size in guesses if share > wanted]
    if needs:
        raise DataError(
            f"{promise}: {total:,} pairs are too few to be sure. About {_rounded_up(max(min(needs), 1.5) * total):,} "
            "pairs like these would probably be enough, or wish for less"
        )
    value, _, _, share, _ = max(tests, key=lambda test: test[3])
    raise DataError(
        f"{promise}: the most that is seen is {share:.1%}, from a similarity of {value:.4f} on. The model does not "
        "tell these pairs apart well enough: wish for less, or use a better or fine-tuned model"
    )


def _rounded_up(number: float) -> int:
    """To two digits."""
    step = 10 ** max(math.floor(math.log10(number)) - 1, 0)
    return math.ceil(number / step) * step


def _accepted_for(wanted: float, true: float, allowed: float) -> int:
    """Pairs, a share `true` of them related, that prove that at least a share `wanted` is."""
    beta = import_extra("scipy.stats", "eval").beta

    def proves(size: int) -> bool:
        return bool(beta.cdf(wanted, true * size, size - true * size + 1) <= allowed)

    high = 2
    while not proves(high) and high < 10**12:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    return high


def _grid(first: int, last: int) -> Iterator[int]:
    """Counts from `first` to `last` that grow by a constant factor; each one where that is less than 1."""
    steps = np.geomspace(max(first, 1), max(last, 1), _TRIED).round().astype(int)
    yield from sorted({first, *(int(step) for step in steps if first <= step <= last)})


def _between(ordered: Floats, count: int) -> float:
    """A threshold that the first `count` of descending similarities reach; fewer, where equal ones stand there.

    It lies in the middle between two similarities: rounding in another computation of them does not matter.
    """
    if count == len(ordered):
        return float(ordered[-1])
    below = float(ordered[count])
    above = float(ordered[count - 1]) if count else below + 2e-6
    return (above + below) / 2 if above > below else float(np.nextafter(below, np.inf))


def odds_factor(share: float, prevalence: float) -> float:
    """What the odds of related to unrelated pairs are multiplied by, at every threshold, at another share of them."""
    return prevalence / (1 - prevalence) / (share / (1 - share))


def _shifted(precision: float, share: float, prevalence: float) -> float:
    """A precision seen at one share of related pairs, at another share."""
    if precision in (0.0, 1.0) or share in (0.0, 1.0):
        return precision
    odds = precision / (1 - precision) * odds_factor(share, prevalence)
    return odds / (1 + odds)


def _bootstrap(
    pairs: ScoredPairs, target: Target, wanted: float, prevalence: float | None, confidence: float, seed: int
) -> tuple[float, float, float]:
    """The threshold that just reaches the rate, and the percentile interval of it over resampled groups."""
    pairs = pairs.part(np.argsort(-pairs.similarity, kind="stable"))
    _, member = np.unique(pairs.groups[0], return_inverse=True)
    number = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    factor = odds_factor(pairs.share, prevalence) if target == "precision" and prevalence is not None else 1.0
    # Only where the similarity changes can a threshold stand.
    ends = np.flatnonzero(np.diff(pairs.similarity, append=-np.inf))

    def just(weights: Floats) -> float:
        yes, no = np.cumsum(weights * pairs.related)[ends], np.cumsum(weights * ~pairs.related)[ends]
        if target == "precision":
            fits = (yes * factor >= wanted * (yes * factor + no)) & (yes > 0)
        elif target == "recall":
            return float(pairs.similarity[ends][np.argmax(yes >= wanted * yes[-1])])
        else:
            fits = no <= wanted * no[-1]
        place = int(np.max(np.flatnonzero(fits), initial=-1))
        # Where not even the strictest threshold fits, the threshold is above all similarities.
        return float(pairs.similarity[ends[place]] if place >= 0 else pairs.similarity[0])

    plain = just(np.ones(len(pairs)))
    drawn = (np.bincount(rng.integers(0, number, number), minlength=number)[member] for _ in range(_RESAMPLES))
    tail = (1 - confidence) / 2
    low, high = np.quantile([just(weights.astype(np.float64)) for weights in drawn], [tail, 1 - tail])
    return plain, float(low), float(high)
