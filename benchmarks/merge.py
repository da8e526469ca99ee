"""Memory and time of merging models of bge-base's shape (random weights, 438 MB each in float32).

    python benchmarks/merge.py [--models 2 4] [--methods average slerp task_arithmetic ties dare]

Each merge runs in a process of its own, which first imports all that merging imports and notes its memory; what counts
is the most that it held above that. The kernel's peak (VmHWM) is reset before the merge, and counts mapped files too.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from worker import status_mib

METHODS = ("average", "slerp", "task_arithmetic", "ties", "dare")
WAYS = (*METHODS, "with data")
MEGABYTE = 1e6


def make_model(folder: Path, seed: int) -> None:
    """A checkpoint of bge-base's shape."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    transformers.BertModel(transformers.BertConfig()).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(30522 - 5))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 768, "pooling_mode_cls_token": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def turn(way: str, folders: list[str]) -> None:
    """One merge in this process; what it took goes to standard output."""
    import bgekit.inference.embedder
    import bgekit.merging.merging
    import bgekit.networks.encoder  # noqa: F401
    from bgekit.merging import Examples, Merging, merge

    base, models = (folders[0], folders[1:]) if way in METHODS[2:] else (None, folders)
    words = [" ".join(f"word{7 * place + number}" for number in range(60)) for place in range(16)]
    rows = [{"query": text[:40], "pos": [text], "neg": words[8:15]} for text in words[:8]]
    idle = status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bge-merge-") as output:
        task = Merging(
            models, method=way if way in METHODS else "average", base=base,
            weights=None if way == "with data" else [1 / len(models)] * len(models),
        )  # fmt: skip
        merge(task, Path(output) / "merged", examples=Examples(rows) if way == "with data" else None)
    print(json.dumps({"seconds": time.perf_counter() - start, "idle": idle, "peak": status_mib("VmHWM")}))


def main() -> None:
    """Make the models, take the turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="+", default=[2, 4], help="numbers of models")
    parser.add_argument("--methods", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--turn", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        turn(args.turn[0], args.turn[1:])
        return
    with tempfile.TemporaryDirectory(prefix="bge-merge-") as name:
        folders = [Path(name) / f"model{number}" for number in range(max(args.models) + 1)]
        for number, folder in enumerate(folders):
            make_model(folder, number)
        size = (folders[0] / "model.safetensors").stat().st_size
        print(f"one model: {size / MEGABYTE:.0f} MB\n")
        print("| models | way | above idle, MB | of one model | seconds |\n|---|---|---|---|---|")
        for count in args.models:
            for way in args.methods:
                if way == "slerp" and count != 2:
                    continue
                used = folders[: count + (way in METHODS[2:])]
                command = [sys.executable, __file__, "--turn", way, *map(str, used)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{way} failed:\n{done.stderr}")
                found = json.loads(done.stdout.splitlines()[-1])
                above = 2**20 * (found["peak"] - found["idle"])  # Bytes.
                print(
                    f"| {count} | {way} | {above / MEGABYTE:.0f} | {above / size:.2f} | {found['seconds']:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
