"""Encode a file larger than memory, stop at any time, run again, and search the result.

    python encode_big_file.py corpus.jsonl vectors [MODEL]

Each line of the file is an object with `text`, and if you like `title` and `id` (csv, parquet, plain text and .gz work
as well). Interrupt the program however you like, even with kill -9: run again, it continues after the last finished
shard, and the files are the same, byte for byte, as those of a run that was never interrupted.
"""

import sys
from pathlib import Path

from bgekit import FlagModel
from bgekit.data import read_records
from bgekit.display import EncodeProgress
from bgekit.inference import encode_to_shards
from bgekit.search import SearchIndex


def main(corpus: str, output: str, name: str = "BAAI/bge-small-en-v1.5") -> None:
    # The context manager ends the worker processes that several GPUs have; one device has none.
    with FlagModel(name) as model:
        with EncodeProgress(Path(corpus).stat().st_size) as progress:
            report = encode_to_shards(model, read_records(corpus), output, store_texts=True, progress=progress)
        print(f"{report.texts:,} texts in {report.shards} shards, {report.kept:,} kept from an earlier run")
        print(f"{report.truncated:,} texts were longer than the model takes and were cut")

        # The vectors stay on disk; what a search does not need is not read.
        for hit in SearchIndex.load(output).ask(model, ["how do I read a file"], top_k=3)[0]:
            print(f"{hit.rank}. {hit.score:.3f}  {hit.id}  {(hit.text or '')[:80]}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:4])
