"""One turn of the training benchmark: trains a model in a contender's own environment and says what it took.

Started by train.py as `python trainers.py TURN.json`; needs nothing but the contender itself. The last line of standard
output is the answer. All contenders are built on transformers' Trainer, so one callback of it takes the time of all.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from encode import _cpu_seconds
from worker import OwnPages, status_mib

Turn = dict[str, Any]


def watch(turn: Turn, memory: OwnPages) -> dict[str, Any]:
    """Have every Trainer made from now on filled in: time of the steps behind the first ones, losses, memory."""
    from transformers import TrainerCallback, trainer

    facts: dict[str, Any] = {}
    before: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now = [time.perf_counter(), *_cpu_seconds(), own_cpu_seconds()]
            if state.global_step == turn["skip"]:
                before[:] = now
            if state.global_step == turn["steps"]:
                # Before anything is saved.
                facts.update(peak_mib=status_mib("VmHWM"), anonymous_mib=memory.peak_mib)
                if before:
                    seconds, busy, total, own = (after - start for after, start in zip(now, before, strict=True))
                    others = max(0.0, busy - own) / total if total else 0.0
                    facts.update(seconds=seconds, cpu_seconds=own, others=others)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            facts["losses"] = [row["loss"] for row in state.log_history if "loss" in row]

    trainer.DEFAULT_CALLBACKS.append(Clock())
    return facts


def own_cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def trainer_options(turn: Turn) -> dict[str, Any]:
    """What all of them get, by the names of transformers' arguments."""
    import torch

    return {
        "output_dir": turn["output"],
        "max_steps": turn["steps"],
        "per_device_train_batch_size": turn["batch"],
        "learning_rate": turn["learning_rate"],
        "lr_scheduler_type": "linear",
        "warmup_steps": turn["warmup"],
        "weight_decay": 0.01,
        "optim": "adamw_torch_fused",
        "seed": turn["seed"],
        "bf16": turn["bf16"],
        "dataloader_drop_last": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }


def command_line(turn: Turn, **more: Any) -> list[str]:
    """The same as arguments of a command, with those that bgekit and FlagEmbedding share."""
    shared = {
        "model_name_or_path": turn["model"],
        "train_data": turn["data"],
        "train_group_size": turn["group"],
        "query_max_len": turn["max_len"],
        "passage_max_len": turn["max_len"],
        "temperature": turn["temperature"],
    }
    options = {**trainer_options(turn), **shared, **more}
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def bgekit(turn: Turn) -> None:
    """Shuffles by itself: gets the rows in the order in which they lie in the file."""
    from bgekit.training.embedder import main

    chunk = {"grad_cache_chunk": turn["chunk"]} if turn.get("chunk") else {}
    main(command_line(turn | {"data": turn["unordered"]}, cache_path=f"{turn['output']}-cache", **chunk))


def flagembedding(turn: Turn) -> None:
    """Its command, reading the rows in the order of the file instead of a random one."""
    from FlagEmbedding.finetune.embedder.encoder_only.base import EncoderOnlyEmbedderTrainer
    from FlagEmbedding.finetune.embedder.encoder_only.base.__main__ import main
    from torch.utils.data import SequentialSampler

    EncoderOnlyEmbedderTrainer._get_train_sampler = lambda self, *_: SequentialSampler(self.train_dataset)
    more = {"query_instruction_for_retrieval": turn["instruction"]} if turn["instruction"] else {}
    sys.argv = ["finetune", *command_line(
        turn, cache_path=f"{turn['output']}-cache", sentence_pooling_method=turn["pooling"], normalize_embeddings=True,
        **more,
    )]  # fmt: skip
    main()


def sentence_transformers(turn: Turn) -> None:
    """MultipleNegativesRankingLoss with the columns that its documentation names, in the order of the file."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from torch.utils.data import BatchSampler, SequentialSampler

    rows = [json.loads(line) for line in Path(turn["data"]).read_text(encoding="utf-8").splitlines()]
    columns = {"anchor": [row["query"] for row in rows], "positive": [row["pos"][0] for row in rows]}
    columns |= {f"negative_{i + 1}": [row["neg"][i] for row in rows] for i in range(turn["group"] - 1)}
    model = SentenceTransformer(turn["model"])
    model.max_seq_length = turn["max_len"]
    arguments = SentenceTransformerTrainingArguments(
        **trainer_options(turn),
        batch_sampler=lambda dataset, batch_size, drop_last, **_: BatchSampler(
            SequentialSampler(dataset), batch_size, drop_last
        ),
        prompts={"anchor": turn["instruction"]} if turn["instruction"] else None,
    )
    loss = MultipleNegativesRankingLoss(model, scale=1 / turn["temperature"])
    data = Dataset.from_dict(columns)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
    model.save_pretrained(turn["output"])


#: By the first word of a contender's name; ` bf16` after it sets the number format.
TRAINERS: dict[str, Callable[[Turn], None]] = {
    "bgekit": bgekit,
    "FlagEmbedding": flagembedding,
    "sentence-transformers": sentence_transformers,
}


def main() -> None:
    turn = json.loads(Path(sys.argv[1]).read_text())
    with OwnPages() as memory:
        facts = watch(turn, memory)
        TRAINERS[turn["contender"].split()[0]](turn)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
