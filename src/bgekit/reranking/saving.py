"""A reranker on disk: a plain checkpoint of transformers, complete or not there at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..models.checkpoint import read_json
from ..models.loading import quiet_transformers
from ..models.saving import (
    KEPT_FILES,
    as_stored,
    atomic_folder,
    copy_matching,
    copy_weights,
    target_folder,
    write_json,
    write_tokenizer,
)
from ..models.side_files import front_matter, hub_id
from .card import CONFIG_KEY, RerankerCard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from .network import CrossEncoder

_TAGS: Final = ("reranker", "cross-encoder", "bgekit")


def write_reranker(
    path: Path,
    *,
    card: RerankerCard,
    source: Path,
    network: CrossEncoder | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    origin: str = "",
    overwrite: bool = False,
    allow_pickle: bool = False,
    remote_code: bool = False,
    prefix: str = "",
) -> None:
    """Write a reranker atomically: config, safetensors, tokenizer, README.

    `AutoModelForSequenceClassification` of transformers and `CrossEncoder` of sentence-transformers load it with equal
    logits. What the card says beyond that is in `config.json`, which both keep.

    Args:
        path: Folder to make.
        card: What the checkpoint says of itself; `dtype` is what weights are stored in.
        source: Checkpoint that tokenizer and licence are taken from, and config and weights unless given.
        network: Its weights and config are saved; None copies the source's.
        tokenizer: A tokenizer to save instead of the source's.
        origin: A sentence for the README on how new weights came about.
        overwrite: Replace a checkpoint that is there.
        allow_pickle: Read `.bin` weights of the source.
        remote_code: Copy the source's Python files.
        prefix: What the names of the source's weights begin with and the result's do not (`stored_prefix`).

    Raises:
        OutputError: the folder exists or holds something else, or it cannot be written.
        CheckpointError: the source is damaged.
    """
    with atomic_folder(target_folder(path, overwrite)) as folder:
        if network is None:
            copy_weights(source, folder, allow_pickle, prefix)
            config = read_json(source / "config.json")
        else:
            with quiet_transformers():
                network.published.save_pretrained(folder, state_dict=as_stored(network.weights(), card.dtype))
            config = {**read_json(folder / "config.json"), "dtype": card.dtype}
        write_json(folder / "config.json", {**config, CONFIG_KEY: card.settings()})
        copy_matching(source, folder, KEPT_FILES[:3])
        if remote_code:
            copy_matching(source, folder, ("*.py",))
        write_tokenizer(source, folder, tokenizer, card.max_length, remote_code)
        front = front_matter(source / "README.md", "text-ranking", _TAGS, hub_id(card.name))
        (folder / "README.md").write_text(f"{front}\n{_readme(path.name, card, origin)}", encoding="utf-8")


def _readme(name: str, card: RerankerCard, origin: str) -> str:
    arguments = "".join(
        f'\n    {argument}="{prompt.prefix}",'
        for argument, prompt in (
            ("query_instruction_for_rerank", card.query),
            ("passage_instruction_for_rerank", card.document),
        )
        if prompt
    )
    note = f"\nSaved with it, so that it need not be given:\n\n```\n{arguments.strip()}\n```\n" if arguments else ""
    origin = f"{origin}\n\n" if origin else ""
    return f"""# {name}

{origin}A cross-encoder ({card.architecture}): it reads a query and a passage together and gives a score; higher is more
relevant. Pairs are cut at {card.max_length} tokens.

```python
from bgekit import FlagReranker

reranker = FlagReranker({json.dumps(name)})  # the path of this folder
reranker.compute_score(["query", "passage"])
reranker.rank("query", ["passage", "another passage"])
```
{note}"""
