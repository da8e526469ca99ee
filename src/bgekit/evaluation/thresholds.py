"""The similarity from which a pair counts as related, such that a guaranteed rate holds on pairs not seen yet.

A threshold that just reaches a rate on some pairs misses it on the next ones about half of the time. So the threshold
here is the lowest one for which the opposite (that the guarantee is broken) is refuted by a test that is valid for any
number of groups:

- A false-positive rate or a recall moves in one direction with the threshold, so one test at each threshold suffices.
- Precision does not. Thresholds are tested from strict to lenient. The error that is allowed is shared among four of
  them, and each one that passes hands its share on to the next (fallback procedure; Wiens 2003, "A fixed sequence
  Bonferroni procedure for testing multiple endpoints"). So the chance that any passes wrongly stays within the allowed
  one. Four starts find a threshold about as often as the best single start does on each kind of data, which differs.

Pairs that share a text are one group, and groups count alike, however many pairs they have: all rates are means over
groups. Where no two pairs share a text, groups are pairs and the tests are exact binomial ones.

The pairs of one query err together: 5,000 pairs of 50 queries tell what 50 independent things tell, and no estimate of
how alike the pairs of a query are can be trusted with so few of them, least where nothing has gone wrong yet. So pairs
are put into groups that have no text in common, and the groups are the sample: each has a share of errors between 0 and
1, and nothing else is assumed of these shares.

A rate is bounded from them as Gaffke ("Three test statistics for a nonparametric one-sided hypothesis on the mean of a
nonnegative variable", Mathematical Methods of Statistics 14, 2005) and Learned-Miller and Thomas ("A new confidence
interval for the mean of a bounded random variable", arXiv:1905.06208, 2019) do: weigh the groups at random (Dirichlet,
as in the Bayesian bootstrap), with one more group that was not seen and is as bad as can be. Where groups are single
pairs, right or wrong, this is exactly the bound of Clopper and Pearson (1934). Where the pairs of a group differ, it is
sharper, as it sees how much groups vary. For shares of two values its confidence is proven; for others nobody has found
a case where it fails (docs/calibrate.md has our search for one).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, DataError, import_extra

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]
Target: TypeAlias = Literal["precision", "false_positive_rate", "recall"]
#: How the cards of calibrated models call it.
METHOD: Final = "Gaffke 2005, over groups of pairs that share no text"
_SIXTEENTHS: Final = np.arange(1, 16) / 16
#: Places of the integral in `_positive`: dense at the middle, wide in the tail.
_STEPS: Final = np.arange(0, 10, 0.1)
_PLACES: Final = np.sinh(_STEPS)
_WIDTHS: Final = np.cosh(_STEPS) * np.where(_STEPS > 0, 0.1, 0.05)
#: Thresholds tried; neighbours differ by a few per cent in the pairs that reach them.
_TRIED: Final = 300
#: Thresholds among which the allowed error of a precision is shared.
_STARTS: Final = 4
#: Sums of weights differ by less where they are equal.
_ROUNDING: Final = 1e-9
#: Resamples of the bootstrap.
_RESAMPLES: Final = 1000


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of texts with their similarity.

    Attributes:
        similarity: [n].
        related: [n], whether the texts belong together.
        groups: [2, n], number of the first and of the second text: pairs with the same text are not independent.
        one_list: First and second texts have common numbers, as those of one list have.
    """

    similarity: Floats
    related: Booleans
    groups: Integers
    one_list: bool = False

    def __len__(self) -> int:
        return len(self.similarity)

    def part(self, chosen: Booleans | Integers) -> ScoredPairs:
        """Some of the pairs."""
        return replace(
            self, similarity=self.similarity[chosen], related=self.related[chosen], groups=self.groups[:, chosen]
        )

    def joined(self, others: ScoredPairs) -> ScoredPairs:
        """These pairs and others of the same texts."""
        return replace(
            self,
            similarity=np.concatenate([self.similarity, others.similarity]),
            related=np.concatenate([self.related, others.related]),
            groups=np.concatenate([self.groups, others.groups], axis=1),
        )

    @property
    def share(self) -> float:
        """Share of related pairs."""
        return float(self.related.mean())


@dataclass(frozen=True)
class GroupedPairs:
    """Pairs in groups that are independent, from the most similar pair to the least similar one.

    Attributes:
        similarity: [n].
        related: [n].
        group: [n], number of the group.
        weight: [n], one by the number of related, or of unrelated, pairs of the group.
        size: Number of groups.
        total: Number of pairs, with those that would join two groups and are not here.
    """

    similarity: Floats
    related: Booleans
    group: Integers
    weight: Floats
    size: int
    total: int

    @classmethod
    def of(cls, pairs: ScoredPairs) -> GroupedPairs:
        """The groups of some pairs."""
        group = independent_groups(pairs.groups, pairs.related, one_list=pairs.one_list)
        order = np.argsort(-pairs.similarity, kind="stable")
        order = order[group[order] >= 0]
        group, related = group[order], pairs.related[order]
        sort = 2 * group + related
        weight = 1.0 / np.bincount(sort, minlength=1)[sort]
        return cls(pairs.similarity[order], related, group, weight, int(group.max(initial=-1)) + 1, len(pairs))

    @property
    def alone(self) -> bool:
        """Each group is one pair."""
        return self.size == self.total

    @property
    def share(self) -> float:
        """Share of related pairs, where each group's related and each group's unrelated ones count as one pair."""
        return float(self.weight[self.related].sum() / self.weight.sum())

    def reach(self, threshold: float) -> int:
        """Number of pairs that have at least this similarity; they are the first ones."""
        return int(np.count_nonzero(self.similarity >= threshold))

    def shares(self, number: int, related: bool) -> Floats:
        """[size], each group's share of its related (or of its unrelated) pairs that are among the first `number`."""
        chosen = self.weight[:number] * (self.related[:number] == related)
        return np.bincount(self.group[:number], chosen, minlength=self.size).astype(np.float64)

    @property
    def unit(self) -> str:
        """Name of the units that are counted."""
        return "pairs" if self.alone else "groups"

    @property
    def remedy(self) -> str:
        """Advice on data that adds groups, where pairs alone do not."""
        return "" if self.alone else " (pairs of other queries or texts, not more of the same)"

    def counted(self, sort: str = "") -> str:
        """Numbers of pairs and groups as the beginning of a sentence: "58 related pairs are"."""
        pairs = f"{self.total:,} {sort} pairs".replace("  ", " ")
        return (
            f"{pairs} are"
            if self.alone
            else f"{pairs} are only {self.size:,} groups (those that share a text are one) and"
        )


def independent_groups(texts: Integers, related: Booleans, *, one_list: bool) -> Integers:
    """[n], the number of each pair's group, -1 for a pair that would join two groups and is left out.

    As many groups as can be found: a set of pairs without any text in common (taken greedily, pairs of rare texts
    first) begins them; every other text joins a group that it has a pair with; what is then within a group stays.
    So all pairs of a query with documents of its own are one group; and random pairs of n texts are n / 2 groups.

    Args:
        texts: [2, n], numbers of the first and of the second text of each pair.
        related: [n]; where related and unrelated pairs compete for texts, as many groups begin with the ones as with
            the others.
        one_list: Both rows number the same texts; else equal numbers in the two rows have nothing to do with each
            other.
    """
    first, second = texts if one_list else (texts[0], texts[1] - texts[1].min(initial=0) + texts[0].max(initial=0) + 1)
    known, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
    first, second, number = numbers[: len(first)], numbers[len(first) :], len(known)
    degree = np.bincount(first, minlength=number) + np.bincount(second, minlength=number)
    component, stars = _components(first, second, degree)
    # Where all pairs of a component share one text, it is one group. The others are taken apart, pair by pair.
    group = np.where(stars[component], component, -1)
    rest = np.flatnonzero(~stars[component])
    if len(rest):
        members = _taken_apart(first[rest], second[rest], related[rest], degree)
        group[rest] = np.where(members >= 0, members + len(stars), -1)
    kept = group >= 0
    group[kept] = np.unique(group[kept], return_inverse=True)[1]
    return group.astype(np.int64)


def _components(first: Integers, second: Integers, degree: Integers) -> tuple[Integers, Booleans]:
    """The number of each pair's connected component, and whether one text is in all pairs of a component."""
    sparse, csgraph = import_extra("scipy.sparse", "eval"), import_extra("scipy.sparse.csgraph", "eval")
    graph = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(len(degree), len(degree)))
    number, of_text = csgraph.connected_components(graph, directed=False)
    component = of_text[first].astype(np.int64)
    most = np.zeros(number, dtype=np.int64)
    # A pair of a text with itself counts once, not twice.
    own = np.bincount(first[first == second], minlength=len(degree))
    np.maximum.at(most, of_text, degree - own)
    return component, most == np.bincount(component, minlength=number)


def _taken_apart(first: Integers, second: Integers, related: Booleans, degree: Integers) -> Integers:
    """[n], the group of each pair, -1 if it joins two."""
    rare, common = np.minimum(degree[first], degree[second]), np.maximum(degree[first], degree[second])
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    order = np.lexsort((common, rare))
    waiting = [iter([pairs[place] for place in order if related[place] == sort]) for sort in (False, True)]
    group: dict[int, int] = {}
    begun = [0, 0]
    while waiting:
        # The next one that can begin a group, of the sort that has begun fewer.
        turn = 0 if len(waiting) == 1 or begun[0] <= begun[1] else 1
        free = next((pair for pair in waiting[turn] if pair[0] not in group and pair[1] not in group), None)
        if free is None:
            del waiting[turn]
            continue
        group[free[0]] = group[free[1]] = sum(begun)
        begun[turn] += 1
    seeds = dict(group)
    for a, b in (pairs[place] for place in order):
        # A text that is still alone has pairs with texts of groups only, else it would have begun one.
        if a not in group:
            group[a] = seeds[b]
        elif b not in group:
            group[b] = seeds[a]
    return np.array([group[a] if group[a] == group[b] else -1 for a, b in pairs], dtype=np.int64)


def chance(wrong: Floats, right: Floats, share: float, *, times: float = 1.0) -> float:
    """Probability of so few errors, or fewer, if the share of errors were `share` (a p-value).

    Args:
        wrong: [g], weight of the errors in each group, at most 1.
        right: [g], weight of what is right there, at most 1.
        share: Share of `wrong` in the expected sum of both.
        times: Look at so many times as many groups like these.
    """
    # Single pairs, as they mostly are, need no integral.
    errors, fine = (wrong == 1) & (right == 0), (right == 1) & (wrong == 0)
    if fine.any() and np.all(errors | fine | (wrong + right == 0)):
        betainc = import_extra("scipy.special", "eval").betainc
        return float(betainc(fine.sum() * times, errors.sum() * times + 1.0, 1.0 - share))
    excess = wrong * (1.0 - share) - right * share
    values, counts = np.unique(excess.round(12), return_counts=True)
    # The group that was not seen has nothing but errors.
    return _positive(np.append(values, 1.0 - share), np.append(counts * times, 1.0))


def interval(wrong: Floats, right: Floats, confidence: float) -> tuple[float, float]:
    """Two-sided confidence interval of the share of errors (see `chance`)."""
    brentq = import_extra("scipy.optimize", "eval").brentq
    tail = (1.0 - confidence) / 2

    def upper(wrong: Floats, right: Floats) -> float:
        if not right.any():
            return 1.0
        found = brentq(lambda share: chance(wrong, right, share) - tail, 1e-12, 1.0 - 1e-12, xtol=1e-9)
        return float(found)

    return 1.0 - upper(right, wrong), upper(wrong, right)


def _positive(weights: Floats, counts: Floats) -> float:
    """The chance that a sum of independent gamma variables, of shapes `counts` and with these weights, is positive.

    It is the integral of M(s) / (2 pi i s) on a line between 0 and the nearest pole to its right, where M(s) is the
    moment generating function, the product of (1 - weight s)^-count. The line goes through the saddle point and is
    bent to the right as far as the third derivative says, where the integrand falls off and hardly turns. Against the
    beta distribution, which is the case of two weights, the error is below 1e-10 for chances up to a half, and below
    0.001 for others.
    """
    largest = float(weights.max())
    if largest <= 0:
        return 0.0
    if weights.min() >= 0:
        return 1.0
    if float(weights @ counts) > 0:  # The smaller one of the two chances is the one that is precise.
        return 1.0 - _positive(-weights, counts)
    weights = weights / largest
    low, high = 0.0, 1.0
    for _ in range(6):  # Where the slope of log M(s) / s turns from falling to rising.
        places = low + (high - low) * _SIXTEENTHS
        falling = int(np.count_nonzero((weights / (1.0 - np.outer(places, weights))) @ counts < 1.0 / places))
        low, high = low + (high - low) * falling / 16, low + (high - low) * (falling + 1) / 16
    saddle = (low + high) / 2
    slopes = weights / (1.0 - weights * saddle)
    second = float(counts @ slopes**2) + saddle**-2
    third = 2.0 * float(counts @ slopes**3) - 2.0 * saddle**-3
    bend = max(third / (6.0 * second), 0.0)
    up = _PLACES / np.sqrt(second)
    path = 1j * up + bend * up**2
    turns = -(counts @ np.log1p(-slopes[:, None] * path))
    values = np.exp(turns) / (saddle + path) * (1.0 - 2j * bend * up)
    height = np.exp(-float(counts @ np.log1p(-weights * saddle)))
    return float(min(max(height / np.pi * (values.real @ _WIDTHS) / np.sqrt(second), 0.0), 1.0))


@dataclass(frozen=True)
class Rate:
    """A share of pairs, as a mean over groups that share no text, with its confidence interval.

    Attributes:
        value: Mean over groups.
        low: Lower end of the interval.
        high: Upper end of it.
        count: Number of pairs that were hit.
        of: Of so many pairs, without those that would join two groups.
        groups: Number of the groups that these pairs are in.
    """

    value: float
    low: float
    high: float
    count: int
    of: int
    groups: int


@dataclass(frozen=True)
class Threshold:
    """The similarity from which on a pair counts as related.

    Attributes:
        target: What was wanted.
        wanted: The wanted rate.
        confidence: Confidence of the guarantee (one-sided) and of the intervals (two-sided).
        groups: Number of groups of pairs that share no text, which the guarantee rests on.
        method: How the guarantee was found.
        value: The threshold that keeps the guarantee; pairs with at least this similarity count as related.
        plain: The threshold that just reaches the rate on these very pairs, without any guarantee.
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
    groups: int
    method: str
    value: float
    plain: float
    low: float
    high: float
    prevalence: float | None
    precision: Rate | None
    false_positive_rate: Rate | None
    recall: Rate | None


def choose_threshold(
    pairs: ScoredPairs, target: Target, wanted: float, *, confidence: float, prevalence: float | None, seed: int
) -> Threshold:
    """The threshold that keeps a guarantee on unseen pairs with a stated confidence, and what it achieves.

    Args:
        pairs: Pairs as the threshold will meet them: drawn at random, and not used to train the model.
        target: Which rate is wanted.
        wanted: The rate: at least this precision or recall, at most this false-positive rate.
        confidence: Probability that the guarantee holds, such as 0.95.
        prevalence: Share of related pairs where the threshold will be used; needed for a precision.
        seed: Random seed for the bootstrap.

    Raises:
        DataError: there are too few pairs for the guarantee, or the precision is out of reach.
    """
    sorts = {"precision": pairs, "false_positive_rate": pairs.part(~pairs.related), "recall": pairs.part(pairs.related)}
    grouped = {name: GroupedPairs.of(sort) for name, sort in sorts.items()}
    used = grouped[target]
    value = _promised(used, target, wanted, 1.0 - confidence, prevalence)
    plain, low, high = _bootstrap(used, target, wanted, prevalence, confidence, seed)
    precision = None
    if prevalence is not None and (reach := grouped["precision"].reach(value)):
        precision = _precision(grouped["precision"], reach, prevalence, confidence)
    return Threshold(
        target, wanted, confidence, used.size, METHOD, value, plain, low, high, prevalence, precision,
        *(
            _rate(each, each.reach(value), confidence) if each.size else None
            for each in (grouped["false_positive_rate"], grouped["recall"])
        ),
    )  # fmt: skip


def promised(
    pairs: ScoredPairs, target: Target, wanted: float, *, confidence: float, prevalence: float | None
) -> float:
    """The threshold alone (`Threshold.value`), with the arguments and errors of `choose_threshold`."""
    if target != "precision":
        pairs = pairs.part(pairs.related == (target == "recall"))
    return _promised(GroupedPairs.of(pairs), target, wanted, 1.0 - confidence, prevalence)


def best_guarantee(
    pairs: ScoredPairs, target: Target, wanted: float, *, confidence: float, prevalence: float | None
) -> tuple[float, float] | None:
    """The rate nearest to `wanted` that these pairs can guarantee, and its threshold; None if they guarantee nothing.

    Arguments are those of `choose_threshold`, which refused `wanted`.
    """

    def threshold(rate: float) -> float | None:
        try:
            return promised(pairs, target, rate, confidence=confidence, prevalence=prevalence)
        except DataError:
            return None

    # Thousandths, as a finer rate is nothing that anybody would ask for; a stricter one never passes where one fails.
    strict, loose = round(1000 * wanted), 1000 if target == "false_positive_rate" else 0
    found: tuple[float, float] | None = None
    while abs(strict - loose) > 1:
        middle = (strict + loose) // 2
        value = threshold(middle / 1000)
        if value is None:
            strict = middle
        else:
            loose, found = middle, (middle / 1000, value)
    return found


def _promised(used: GroupedPairs, target: Target, wanted: float, allowed: float, prevalence: float | None) -> float:
    if target == "precision":
        if prevalence is None:
            raise ArgumentError("precision depends on the share of related pairs: give prevalence")
        return _precise(used, wanted, prevalence, allowed)
    if target == "false_positive_rate":
        return _quantile(used, wanted, allowed, related=False)
    # A related pair that is missed is a false positive of the reversed similarity.
    turned = replace(
        used, similarity=-used.similarity[::-1], related=used.related[::-1], group=used.group[::-1],
        weight=used.weight[::-1],
    )  # fmt: skip
    return -_quantile(turned, 1.0 - wanted, allowed, related=True)


def rate(hits: Booleans, groups: Integers, confidence: float, *, one_list: bool = False) -> Rate:
    """The share of hits and its interval; that of Clopper and Pearson where no two pairs share a text.

    Args:
        hits: [n].
        groups: [2, n], numbers of the texts, as those of `ScoredPairs`.
        confidence: Confidence of the interval.
        one_list: As that of `ScoredPairs`.
    """
    pairs = ScoredPairs(hits.astype(np.float64), np.zeros(len(hits), dtype=bool), groups, one_list)
    grouped = GroupedPairs.of(pairs)
    return _rate(grouped, grouped.reach(1.0), confidence)


def _rate(pairs: GroupedPairs, reach: int, confidence: float) -> Rate:
    """Share of the pairs (all related, or all unrelated) that is among the first `reach`."""
    hits = pairs.shares(reach, False) + pairs.shares(reach, True)
    return Rate(float(hits.mean()), *interval(hits, 1.0 - hits, confidence), reach, len(pairs.similarity), pairs.size)


def _precision(pairs: GroupedPairs, reach: int, prevalence: float, confidence: float) -> Rate:
    """Share of related ones among the first `reach` pairs, at a prevalence."""
    right, wrong = pairs.shares(reach, True), pairs.shares(reach, False)
    seen = float(right.sum() / (right.sum() + wrong.sum()))
    value, low, high = (_shifted(each, pairs.share, prevalence) for each in (seen, *interval(right, wrong, confidence)))
    groups = len(np.unique(pairs.group[:reach]))
    return Rate(value, low, high, int(pairs.related[:reach].sum()), reach, groups)


def needed_groups(wanted: float, allowed: float) -> int:
    """Groups (or pairs, where no two share a text) without any error that a guarantee of a share `wanted` needs."""
    return math.ceil(math.log(allowed) / math.log1p(-wanted))


def _quantile(pairs: GroupedPairs, wanted: float, allowed: float, *, related: bool) -> float:
    """The lowest threshold that at most a share `wanted` of the population reaches; the pairs are all of one sort."""
    need = needed_groups(wanted, allowed)
    if pairs.size < need:
        least = 1.0 - allowed ** (1.0 / pairs.size) if pairs.size else 1.0
        asked, possible = (1.0 - wanted, 1.0 - least) if related else (wanted, least)
        raise DataError(
            f"{pairs.counted('related' if related else 'unrelated')} too few to guarantee a rate of {asked:.4g} with "
            f"{100 * (1 - allowed):.4g}% confidence: at least {need:,} are needed, better {4 * need:,}"
            f"{pairs.remedy}, or ask for less (with these, {possible:.3g} at the very best)"
        )

    def passes(count: int) -> bool:
        errors = pairs.shares(pairs.reach(_between(pairs.similarity, count)), related)
        return chance(errors, 1.0 - errors, wanted) <= allowed

    # No error passes, as there are groups enough; the share that is allowed fails; and in between, more never pass
    # where fewer fail.
    low, high = 0, min(int(np.searchsorted(np.cumsum(pairs.weight), wanted * pairs.size)) + 1, len(pairs.similarity))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return _between(pairs.similarity, low)


def _precise(pairs: GroupedPairs, at_prevalence: float, prevalence: float, allowed: float) -> float:
    """The lowest threshold whose precision, at a prevalence, is at least `at_prevalence`."""
    wanted = _shifted(at_prevalence, prevalence, pairs.share)
    refusal = f"a precision of {at_prevalence:g} cannot be guaranteed with {100 * (1 - allowed):.4g}% confidence"
    if not math.isclose(wanted, at_prevalence, rel_tol=0.01):
        refusal += f" (for a share of related pairs of {prevalence:.3g} it means {wanted:.4g} among these pairs)"
    related = len(np.unique(pairs.group[pairs.related]))
    level = allowed / _STARTS
    least = needed_groups(1 - wanted, level)
    if related < least:
        need = math.ceil(2 * least * pairs.size / max(related, 1))
        raise DataError(
            f"{refusal}: {related:,} {'' if pairs.alone else 'groups with '}related pairs are too few, at least "
            f"{least:,} must reach the threshold without an unrelated one among them; about {need:,} "
            f"{pairs.unit} like these {pairs.size:,} are needed{pairs.remedy}, or ask for less"
        )
    # Groups' worth of pairs, related and unrelated, that reach a threshold.
    worth = np.cumsum(pairs.weight)
    counts = list(_grid(int(np.searchsorted(worth, least - 1e-9)) + 1, len(worth)))
    # From the fewest pairs that can pass up to all related ones, which is too many unless the model never errs.
    ideal = np.geomspace(least, max(related, least), _STARTS + 1)[:-1]
    starts = [min(counts, key=lambda count: abs(worth[count - 1] - place)) for place in ideal]
    best, passed = None, 0
    for count in counts:
        value = _between(pairs.similarity, count)
        reach = pairs.reach(value)
        passed += starts.count(count)
        if not reach:  # All of them are equally similar, and more than are asked for here.
            continue
        if passed and chance(pairs.shares(reach, False), pairs.shares(reach, True), 1 - wanted) <= passed * level:
            best = value
        else:
            passed = 0
    if best is None:
        raise DataError(f"{refusal}: {_why_not(pairs, counts, wanted, level)}")
    return best


def _why_not(pairs: GroupedPairs, counts: list[int], wanted: float, level: float) -> str:
    """Why no threshold among those that so many pairs reach has a precision, and what would help."""
    # Equal similarities reach a threshold together.
    counts = sorted({pairs.reach(float(pairs.similarity[count - 1])) for count in counts})
    needs = []
    for count in counts[:: math.ceil(len(counts) / 30)]:
        # With one more group of each sort, as the best of many looks better than it is.
        wrong = np.append(pairs.shares(count, False), [1.0, 0.0])
        right = np.append(pairs.shares(count, True), [0.0, 1.0])
        if right.sum() > wanted * (right.sum() + wrong.sum()):
            needs.append(_times_until(wrong, right, 1 - wanted, level))
    if needs:
        return (
            f"{pairs.counted()} too few to be sure. About {_rounded_up(max(min(needs), 1.5) * pairs.size):,} "
            f"{pairs.unit} like these would probably be enough{pairs.remedy}, or ask for less"
        )
    shares = np.cumsum(pairs.weight * pairs.related) / np.cumsum(pairs.weight)
    most = max(counts, key=lambda count: shares[count - 1])
    return (
        f"the most that is seen is {shares[most - 1]:.1%}, from a similarity of {pairs.similarity[most - 1]:.4f} on, "
        "where enough pairs reach it. The model does not tell these pairs apart well enough: ask for less, or use a "
        "better or fine-tuned model"
    )


def _times_until(wrong: Floats, right: Floats, share: float, level: float) -> float:
    """The factor by which groups like these must grow in number to refute that the share of errors is `share`."""
    low, high = 0.0, 1.0
    while chance(wrong, right, share, times=high) > level and high < 10**9:
        low, high = high, 2 * high
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (low, middle) if chance(wrong, right, share, times=middle) <= level else (middle, high)
    return high


def _rounded_up(number: float) -> int:
    """A number rounded up to two digits."""
    step = 10 ** max(math.floor(math.log10(number)) - 1, 0)
    return math.ceil(number / step) * step


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
    first = int(np.searchsorted(-ordered, -below, side="left"))  # Equal ones stand or fall together.
    above = float(ordered[first - 1]) if first else below + 2e-6
    return (above + below) / 2


def odds_factor(share: float, prevalence: float) -> float:
    """Factor on the odds of related to unrelated pairs, at every threshold, at another share of related pairs."""
    return prevalence / (1 - prevalence) / (share / (1 - share))


def _shifted(precision: float, share: float, prevalence: float) -> float:
    """A precision seen at one share of related pairs, at another share."""
    if precision in (0.0, 1.0) or share in (0.0, 1.0):
        return precision
    odds = precision / (1 - precision) * odds_factor(share, prevalence)
    return odds / (1 + odds)


def _bootstrap(
    pairs: GroupedPairs, target: Target, wanted: float, prevalence: float | None, confidence: float, seed: int
) -> tuple[float, float, float]:
    """The threshold that just reaches the rate, and the percentile interval of it over resampled groups."""
    rng = np.random.default_rng(seed)
    factor = odds_factor(pairs.share, prevalence) if target == "precision" and prevalence is not None else 1.0
    # Only where the similarity changes can a threshold stand.
    ends = np.flatnonzero(np.diff(pairs.similarity, append=-np.inf))

    def just(times: Floats) -> float:
        weights = pairs.weight * times
        yes, no = np.cumsum(weights * pairs.related)[ends], np.cumsum(weights * ~pairs.related)[ends]
        if target == "precision":
            fits = (yes * factor >= wanted * (yes * factor + no)) & (yes > 0)
        elif target == "recall":
            return float(pairs.similarity[ends][np.argmax(yes >= wanted * yes[-1] - _ROUNDING)])
        else:
            fits = no <= wanted * no[-1] + _ROUNDING
        place = int(np.max(np.flatnonzero(fits), initial=-1))
        # Where not even the strictest threshold fits, the threshold is above all similarities.
        return float(pairs.similarity[ends[place]] if place >= 0 else pairs.similarity[0])

    plain = just(np.ones(len(pairs.similarity)))
    size = pairs.size
    drawn = (np.bincount(rng.integers(0, size, size), minlength=size)[pairs.group] for _ in range(_RESAMPLES))
    tail = (1 - confidence) / 2
    low, high = np.quantile([just(times.astype(np.float64)) for times in drawn], [tail, 1 - tail])
    return plain, float(low), float(high)
