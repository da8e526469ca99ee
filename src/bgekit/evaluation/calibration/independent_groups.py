"""Independent groups of pairs that share no text, and the bound on a rate that such groups prove.

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

from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import import_extra

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]
#: How the cards of calibrated models call it.
METHOD: Final = "Gaffke 2005, over groups of pairs that share no text"
_SIXTEENTHS: Final = np.arange(1, 16) / 16
#: Places of the integral in `_positive`: dense at the middle, wide in the tail.
_STEPS: Final = np.arange(0, 10, 0.1)
_PLACES: Final = np.sinh(_STEPS)
_WIDTHS: Final = np.cosh(_STEPS) * np.where(_STEPS > 0, 0.1, 0.05)


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
        share: Of `wrong` in the expected sum of both.
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
