"""CPU seconds that `bge` takes to answer wrong usage: twenty mistakes, the median of several runs of each.

Each answer must have exit code 2 and name what was meant, or what is missing. The hub is not asked (HF_HUB_OFFLINE).

    python benchmarks/usage.py [--runs 5] [--output usage.json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

#: CPU seconds that an answer may take.
LIMIT: Final = 0.5
#: What is typed, and a part of the answer.
MISTAKES: Final = (
    ("serach docs.txt -q x", "did you mean search?"),
    ("finetun --model x", "did you mean finetune?"),
    ("search docs.txt -q x --text-feild body", "did you mean --text-field?"),
    ("search docs.txt -q x --modell BAAI/bge-m3", "did you mean --model?"),
    ("search docs.txt -q x --top-k many --model BAAI/bge-m3", "a whole number of at least 1"),
    ("search docs.txt -q x --index-type hnws --model BAAI/bge-m3", "did you mean hnsw?"),
    ("search docs.txt -q x --model bge-small-en-v1.5", "did you mean BAAI/bge-small-en-v1.5?"),
    ("search docs.txt -q x --model BAAI/bge-smal-en-v1.5", "did you mean BAAI/bge-small-en-v1.5?"),
    ("encode docs.txt -o vectors", "--model"),
    ("encode docs.txt --model BAAI/bge-m3", "--output"),
    ("encode docs.txt -o vectors --model BAAI/bge-m3 --dtype float61", "did you mean float16?"),
    ("eval --data docs --model BAAI/bge-base-en-v15 --compair instruction", "did you mean --compare?"),
    ("calibrate --model BAAI/bge-m3", "--data"),
    ("mine --input train.jsonl --outputs mined.jsonl", "did you mean --output?"),
    ("rerank docs.jsonl --model BAAI/bge-reranker-v2-m4", "did you mean BAAI/bge-reranker-v2-m3?"),
    ("finetune --model BAAI/bge-m3 --train-data train.jsonl -o tuned --learning-rat 1e-5", "mean --learning-rate?"),
    ("finetune --model BAAI/bge-m3 --train-data train.jsonl -o tuned --lr fast", "invalid float value: 'fast'"),
    ("finetune --model BAAI/bge-m3 --train-data train.jsonl", "--output is needed"),
    ("finetune --model BAAI/bge-m3 --train-data a -o b --lr-scheduler-type cosin", "did you mean cosine?"),
    ("finetune --model BAAI/bge-smal-en-v1.5 --train-data a -o b", "did you mean BAAI/bge-small-en-v1.5?"),
)  # fmt: skip


def answer(typed: str, folder: Path) -> tuple[float, int, str]:
    """CPU seconds, exit code and what is said on stderr."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "bgekit", *typed.split()], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, done.returncode, done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each mistake [5]")
    parser.add_argument("--output", metavar="FILE", help="write the seconds here as JSON")
    args = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "docs.txt").write_text("a text\n")
        for typed, part in MISTAKES:
            runs = [answer(typed, folder) for _ in range(args.runs)]
            seconds = statistics.median(each[0] for each in runs)
            code, said = runs[0][1:]
            right = code == 2 and part in said
            found.append({"typed": f"bge {typed}", "seconds": round(seconds, 3), "code": code, "right": right})
            mark = (
                "" if right and seconds < LIMIT else "   <- " + (f"exit code {code}: {said}" if not right else "slow")
            )
            print(f"{seconds:6.3f} s  bge {typed}{mark}")
    slowest = max(each["seconds"] for each in found)
    good = sum(bool(each["right"]) for each in found)
    print(f"{good} of {len(found)} answered with exit code 2 and what was meant; slowest {slowest:.3f} s of CPU")
    if args.output:
        Path(args.output).write_text(json.dumps(found, indent=1) + "\n")
    return 0 if good == len(found) and slowest < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
