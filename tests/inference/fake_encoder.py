"""An embedder without a model: vectors from a hash of each text. As a program: encode files with it.

python fake_encoder.py OUT FILE... [--delay SECONDS] [--hang-after BLOCKS] [--shard-size N] [--log FILE]
"""

import argparse
import hashlib
import time

import numpy as np

from bgekit.inference.model import Embedder
from bgekit.inference.pipeline import Encoded
from bgekit.models.card import ModelCard, Prompt


class FakeEncoder(Embedder):
    """Deterministic vectors; a text counts a token a word and is cut at `max_length`."""

    dimension = 16
    precision = "float32"

    def __init__(self, *, delay=0.0, hang_after=None, log=None, seed="0", query="", max_length=8):
        self.card = ModelCard(
            name="fake", pooling="cls", normalize=True, max_length=max_length, dimension=16,
            prompts={"query": Prompt(query), "document": Prompt()},
        )  # fmt: skip
        self.delay, self.log, self.seed = delay, log, seed
        self.encoded, self.blocks_left = [], hang_after

    @property
    def fingerprint(self):
        return hashlib.sha256(f"{self.seed}{self.card.prompts}".encode()).hexdigest()

    def _compute(self, blocks, prompt, max_length, batch_size):
        for texts in blocks:
            if self.log is not None:
                with open(self.log, "a") as log:
                    log.writelines(f"{text}\n" for text in texts)
            self.encoded += texts
            if self.blocks_left is not None:
                time.sleep(0 if self.blocks_left else 600)
                self.blocks_left -= 1
            time.sleep(self.delay)
            words = [len(text.split()) for text in texts]
            vectors = np.stack([self._vector(prompt.prefix + text) for text in texts])
            limit = max_length or self.card.max_length
            cut = [row for row, count in enumerate(words) if count > limit]
            yield Encoded(vectors, sum(min(count, limit) for count in words), cut)

    def _vector(self, text):
        digest = hashlib.blake2b((self.seed + text).encode(), digest_size=64).digest()
        vector = np.frombuffer(digest, dtype=np.uint32).astype(np.float32) / 2**32 - 0.5
        return vector / np.linalg.norm(vector)


def main():
    from bgekit.data.records import read_records
    from bgekit.inference.shards import encode_to_shards

    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--hang-after", type=int)
    parser.add_argument("--shard-size", type=int, default=10)
    parser.add_argument("--log")
    parser.add_argument("--file-limit", type=int, help="bytes that a file may have (RLIMIT_FSIZE)")
    args = parser.parse_args()
    if args.file_limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (args.file_limit, args.file_limit))
    model = FakeEncoder(delay=args.delay, hang_after=args.hang_after, log=args.log)
    encode_to_shards(model, read_records(args.files), args.output, shard_size=args.shard_size)


if __name__ == "__main__":
    main()
