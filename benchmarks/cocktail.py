"""LM-Cocktail in miniature: what fine-tuning on one task takes from others, and what merging gives back.

    python benchmarks/cocktail.py run --work DIR [--seeds 0 1 2] [--epochs 2 --rate 1e-4]
    python benchmarks/cocktail.py table --work DIR [--image F.png]

bge-small-zh-v1.5 is fine-tuned on AFQMC (pairs of questions to a bank that mean the same or do not; `--scored_loss
cosent`) and merged with what it was before by `bge merge`, at every weight from 0 to 1 in tenths. All of them are
measured on the validation split of AFQMC and on tasks that were not trained on. With g the gain of fine-tuning on AFQMC
and l the mean loss on the others, a merge keeps (its gain) / g and restores 1 - (its loss) / l.

What is in DIR already is not made again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import charts
from learning import BGE_ZH, COMMON, DATA, afqmc_pairs, bge, write

TARGET = DATA / "AFQMC"
OTHERS = tuple(DATA / name for name in ("CMRC2018Retrieval", "LCQMC", "STSB", "Ocnli"))
WEIGHTS = tuple(tenth / 10 for tenth in range(11))


def merged(work: Path, seed: int, weight: float) -> str:
    """The folder of a merge, or one of the two that are merged."""
    if weight == 0:
        return BGE_ZH
    return str(work / (f"tuned-{seed}" if weight == 1 else f"merged-{seed}-{weight}"))


def run(args: argparse.Namespace) -> None:
    """Train, merge and measure."""
    from bgekit.evaluation import evaluate

    work: Path = args.work
    pairs = work / "pairs.jsonl"
    if not pairs.exists():
        write(pairs, afqmc_pairs())
    for seed in args.seeds:
        tuned = Path(merged(work, seed, 1))
        if not (tuned / "config.json").exists():
            bge("finetune", "--model", BGE_ZH, "--train_data", pairs, "--output_dir", tuned, "--overwrite_output_dir",
                "--seed", seed, *COMMON, "--query_max_len", "48", "--passage_max_len", "48",
                "--num_train_epochs", args.epochs, "--learning_rate", args.rate)  # fmt: skip
        for weight in reversed(WEIGHTS):
            folder = merged(work, seed, weight)
            if not Path(folder).exists():
                bge("merge", "--models", tuned, BGE_ZH, "--weights", weight, round(1 - weight, 1), "--output", folder)
            evaluate(folder, [TARGET, *OTHERS], output=work / "scores", compare=False, progress=False)
    table(args)


def scores(args: argparse.Namespace, data: Path) -> list[list[float]]:
    """For each weight the main score of each seed, x100; everything comes from the cache."""
    from bgekit.evaluation import evaluate

    def score(folder: str) -> float:
        found = evaluate(folder, data, output=args.work / "scores", compare=False, progress=False)
        return float(found.results[0].main_score)

    return [[score(merged(args.work, seed, weight)) for seed in args.seeds] for weight in WEIGHTS]


def table(args: argparse.Namespace) -> None:
    """The curve over weights, as means over the seeds, and as an image."""
    measured = {path.name: scores(args, path) for path in (TARGET, *OTHERS)}
    means = {name: [statistics.mean(each) for each in by_weight] for name, by_weight in measured.items()}
    others = [statistics.mean(means[path.name][place] for path in OTHERS) for place in range(len(WEIGHTS))]
    target = means[TARGET.name]
    gain, loss = target[-1] - target[0], others[0] - others[-1]
    if gain <= 0 or loss <= 0:
        raise SystemExit(f"fine-tuning gained {gain:.2f} on its task and lost {loss:.2f} on the others: train longer")
    kept = [(value - target[0]) / gain for value in target]
    restored = [1 - (others[0] - value) / loss for value in others]
    print(f"| weight of the tuned model | {' | '.join(means)} | mean of the others | gain kept | loss restored |")
    print("|---|" + "--:|" * (len(means) + 3))
    for place, weight in enumerate(WEIGHTS):
        cells = [f"{values[place]:.2f}" for values in means.values()]
        print(f"| {weight} | {' | '.join(cells)} | {others[place]:.2f} | {kept[place]:.0%} | {restored[place]:.0%} |")
    print()
    for name, by_weight in measured.items():
        print(f"{name}: {by_weight[0][0]:.2f} before, {[round(value, 2) for value in by_weight[-1]]} fine-tuned")
    if args.image:
        draw(args.image, kept, restored)


def draw(path: str, kept: Sequence[float], restored: Sequence[float]) -> None:
    figure, (axis,) = charts.subplots()
    axis.axhline(70, color="#d0d0d0", linewidth=1)
    for values, label, colour in (
        (kept, "gain on AFQMC that is kept", "#1f6f54"),
        (restored, "loss on the other tasks that is restored", "#b5542c"),
    ):
        axis.plot(WEIGHTS, [100 * value for value in values], "o-", color=colour, label=label)
    axis.set_xlabel("weight of the fine-tuned model")
    axis.set_ylabel("%")
    axis.legend(frameon=False)
    charts.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", default="1e-4", help="learning rate")
    parser.add_argument("--image", help="where the curve is drawn")
    args = parser.parse_args()
    (run if args.action == "run" else table)(args)


if __name__ == "__main__":
    main()
