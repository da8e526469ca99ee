"""What `bge calibrate` promises, checked on pairs that it has not seen.

python benchmarks/calibration.py promise --model MODEL --data DIR [--seen validation] [--unseen test] --precision 0.9
python benchmarks/calibration.py maps --model MODEL --data DIR --split test
python benchmarks/calibration.py ranges --data DIR --model MODEL [MODEL ...]

`promise` calibrates on one split and looks at another; then, many times, on a random part of a split and looks at the
rest of it, where seen and unseen pairs are alike (or, with `--redraw`, at the whole split, of which the part is then a
sample with replacement). `maps` compares ways to turn a similarity into a probability on pairs that they were not
fitted to. `ranges` prints how the similarity of unrelated pairs is spread, model by model.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from bgekit import FlagModel
from bgekit.errors import DataError
from bgekit.evaluation import thresholds
from bgekit.evaluation.calibration import QUANTILES, fit_logistic, scored_pairs
from bgekit.evaluation.readers.detect import read_tasks
from bgekit.evaluation.text_pairs import pairs_of_task
from bgekit.evaluation.thresholds import ScoredPairs, choose_threshold, independent_groups, rate


def scored(model: FlagModel, data: str, split: str | None, pairs: int) -> tuple[str, ScoredPairs, ScoredPairs]:
    """Name and split, labelled pairs, random pairs."""
    task = read_tasks(data, split=split)[0]
    return f"{task.name} {task.split}", *scored_pairs(model, pairs_of_task(task, pairs), False)


def parted(pairs: ScoredPairs, number: int, seed: int) -> tuple[ScoredPairs, ScoredPairs]:
    """About so many pairs, of random groups of pairs that share texts, and the pairs of all other groups."""
    group, sizes = groups_of(pairs)
    order = np.random.default_rng(seed).permutation(len(sizes))
    seen = np.isin(group, order[np.cumsum(sizes[order]) <= number])
    return pairs.part(seen), pairs.part(~seen & (group >= 0))


def redrawn(pairs: ScoredPairs, number: int, seed: int) -> tuple[ScoredPairs, ScoredPairs]:
    """About so many pairs, of groups drawn with replacement, and all pairs as the population that these come from."""
    group, sizes = groups_of(pairs)
    drawn = np.random.default_rng(seed).integers(0, len(sizes), number)
    drawn = drawn[np.cumsum(sizes[drawn]) <= number]
    places = np.split(np.argsort(group, kind="stable")[np.sum(group < 0) :], np.cumsum(sizes)[:-1])
    chosen = np.concatenate([places[each] for each in drawn])
    # A group that is drawn twice is two groups.
    times = np.repeat(np.arange(len(drawn)), sizes[drawn]) * (pairs.groups.max() + 1)
    return replace(pairs.part(chosen), groups=pairs.groups[:, chosen] + times), pairs.part(group >= 0)


def groups_of(pairs: ScoredPairs) -> tuple[np.ndarray, np.ndarray]:
    """The group of each pair, -1 without one, and the number of pairs in each group."""
    group = independent_groups(pairs.groups, pairs.related, one_list=pairs.one_list)
    return group, np.bincount(group[group >= 0])


def promise(args: argparse.Namespace) -> None:
    """Precision and false-positive rate on unseen pairs."""
    thresholds._RESAMPLES = 2  # The interval of the threshold is not looked at here.
    model = FlagModel(args.model[0])
    name, seen, _ = scored(model, args.data, args.seen, args.pairs)
    other, unseen, _ = scored(model, args.data, args.unseen, args.pairs)
    wishes = [("precision", wanted) for wanted in args.precision]
    wishes += [("false_positive_rate", wanted) for wanted in args.false_positive_rate]
    print(f"{Path(args.model[0]).name}: {name} ({len(seen):,} pairs) -> {other} ({len(unseen):,} pairs)")
    for target, wanted in wishes:
        try:
            found = choose_threshold(seen, target, wanted, confidence=0.95, prevalence=seen.share, seed=0)
        except DataError as error:
            print(f"  {target} {wanted}: {error}")
            continue
        for label, value in (("promised", found.value), ("just fits", found.plain)):
            print(f"  {target} {wanted}: {label} {value:.4f} -> {achieved(unseen, target, value)}")
    for label, pairs in ((name, seen), (other, unseen)):
        for target, wanted in wishes:
            kept: dict[str, list[bool]] = {"value": [], "plain": []}
            for seed in range(args.repeats):
                here, there = redrawn(pairs, args.sample, seed) if args.redraw else parted(pairs, args.sample, seed)
                try:
                    found = choose_threshold(here, target, wanted, confidence=0.95, prevalence=here.share, seed=0)
                except DataError:
                    continue
                for which, results in kept.items():
                    reach = there.similarity >= getattr(found, which)
                    if target == "precision":
                        results.append(bool(reach.any()) and there.related[reach].mean() >= wanted)
                    else:
                        results.append(reach[~there.related].mean() <= wanted)
            number = len(kept["value"])
            print(
                f"  {args.sample:,} of {label}, {target} {wanted}: a threshold {number} of {args.repeats} times; on "
                f"{'all' if args.redraw else 'the other'} {len(there):,} it held {sum(kept['value'])} times, "
                f"the one that just fits {sum(kept['plain'])} times"
            )


def achieved(pairs: ScoredPairs, target: str, value: float) -> str:
    """The rate at a threshold with its interval, and the recall."""
    reach = pairs.similarity >= value
    if target == "precision":
        found = rate(pairs.related[reach], pairs.groups[:, reach], 0.95, one_list=pairs.one_list)
    else:
        found = rate(reach[~pairs.related], pairs.groups[:, ~pairs.related], 0.95, one_list=pairs.one_list)
    return (
        f"{100 * found.value:.2f} % ({100 * found.low:.2f} to {100 * found.high:.2f}), {found.count:,} of "
        f"{found.of:,}; recall {100 * reach[pairs.related].mean():.1f} %"
    )


def maps(args: argparse.Namespace) -> None:
    """Log loss and calibration error of three maps on unseen pairs."""
    from sklearn.isotonic import IsotonicRegression

    columns = "".join(f"  {name:>18}" for name in ("with nearness", "logistic", "isotonic"))
    print(f"{'model':<20} {'data':<24} {'fitted to':>9}{columns}  (log loss, ECE)")
    for model_name in args.model:
        name, pairs, _ = scored(FlagModel(model_name), args.data, args.split, args.pairs)
        for number in (200, 1000, 2000):
            results: dict[str, list[tuple[float, float]]] = {}
            for seed in range(20):
                seen, unseen = parted(pairs, number, seed)
                near, plain = (fit_logistic(seen, seen.share, bounded=bounded) for bounded in (True, False))
                steps = IsotonicRegression(y_min=1e-3, y_max=1 - 1e-3, out_of_bounds="clip")
                steps.fit(seen.similarity, seen.related)
                for kind, chances in (
                    ("near", near(unseen.similarity)),
                    ("logistic", plain(unseen.similarity)),
                    ("isotonic", steps.predict(unseen.similarity)),
                ):
                    results.setdefault(kind, []).append(
                        (log_loss(chances, unseen.related), ece(chances, unseen.related))
                    )
            cells = ["{:.4f}, {:.2f} %".format(*np.mean(each, axis=0) * [1, 100]) for each in results.values()]
            print(f"{Path(model_name).name:<20} {name:<24} {number:>9,}" + "".join(f"  {cell:>18}" for cell in cells))


def log_loss(chances: np.ndarray, related: np.ndarray) -> float:
    """Mean negative log likelihood."""
    chances = np.clip(chances.astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-np.mean(np.where(related, np.log(chances), np.log1p(-chances))))


def ece(chances: np.ndarray, related: np.ndarray) -> float:
    """Mean distance of probability and share of related pairs over 15 ranges of as many pairs each."""
    parts = np.array_split(np.argsort(chances, kind="stable"), 15)
    return float(sum(len(part) * abs(chances[part].mean() - related[part].mean()) for part in parts) / len(chances))


def ranges(args: argparse.Namespace) -> None:
    """Quantiles of the similarity of random pairs and of labelled ones."""
    head = "".join(f"{each:>7} %" for each in QUANTILES)
    print(f"{'model':<20} {'data':<26} {'pairs':<10} {'number':>6} {head}  at least 0.6  at least 0.5")
    for model_name in args.model:
        name, pairs, random = scored(FlagModel(model_name), args.data, args.split, args.pairs)
        groups = {"random": random.similarity, "unrelated": pairs.similarity[~pairs.related]}
        groups["related"] = pairs.similarity[pairs.related]
        for label, values in groups.items():
            if len(values):
                row = "".join(f"{each:>9.3f}" for each in np.quantile(values, np.array(QUANTILES) / 100))
                above = "".join(f"{100 * np.mean(values >= least):>12.1f} %" for least in (0.6, 0.5))
                print(f"{Path(model_name).name:<20} {name:<26} {label:<10} {len(values):>6,} {row}{above}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("promise", "maps", "ranges"))
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split")
    parser.add_argument("--seen", default="validation")
    parser.add_argument("--unseen", default="test")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--sample", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--redraw", action="store_true", help="draw with replacement, and look at the whole split")
    parser.add_argument("--precision", type=float, nargs="*", default=[])
    parser.add_argument("--false-positive-rate", type=float, nargs="*", default=[])
    args = parser.parse_args()
    {"promise": promise, "maps": maps, "ranges": ranges}[args.what](args)


if __name__ == "__main__":
    main()
