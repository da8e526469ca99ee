#!/usr/bin/env bash
# transformers 5.24.0 (with torch 2.13.0): what is not in a checkpoint, when a class brings its own code.
#
# `from_pretrained` builds a model on the meta device, fills in the weights of the checkpoint, and makes everything else
# with `torch.empty_like`, for the class's `_init_weights` to fill. The usual `_init_weights` of a class with code of its
# own (linear layers, embeddings, norms) knows nothing of buffers, which until transformers 4 the constructor had made. So
#
# 1. a buffer of `register_buffer(..., persistent=False)`, such as a rotary `inv_freq`, holds whatever was in memory:
#    outputs are wrong and differ from process to process, without a warning or an error;
# 2. a layer with such a buffer counts as not initialised, and a `_init_weights` that writes in place
#    (`module.weight.data.normal_()`) overwrites the layer's weights that were read from the checkpoint.
#
# The class that is used here does not change; its constructor with `load_state_dict` gives the right output.
#
# Seen on 2026-11-28 (numbers of the first two lines vary):
#
#   cosine to the class itself, three processes: 0.0266 0.0000 -0.0000
#   largest difference of inv_freq, three processes: 4.01e+15 2.51e+14 2.51e+14
#   weights of the layer with a buffer as in the checkpoint: False
#   transformers 5.24.0 leaves unsaved buffers of own code uninitialised: still so
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "torch==2.13.0" "transformers==5.24.0" "numpy==2.4.6"
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/home"

cat > own.py <<'PYTHON'
"""A model with code of its own, as many repositories on the hub bring one."""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class OwnConfig(PretrainedConfig):
    model_type = "own-rotary"

    def __init__(self, hidden_size=64, vocab_size=100, **options):
        super().__init__(**options)
        self.hidden_size, self.vocab_size = hidden_size, vocab_size


class Scaled(nn.Linear):
    """A linear layer with a buffer beside its weights."""

    def __init__(self, width):
        super().__init__(width, width)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, hidden):
        return super().forward(hidden) * self.scale


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, width)
        self.mix = nn.Linear(width, width)
        self.last = Scaled(width)
        inv_freq = 1.0 / 10000 ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(0.0, 0.02)
        if isinstance(module, nn.Linear):
            module.bias.data.zero_()

    def forward(self, input_ids):
        angles = torch.arange(input_ids.shape[1])[:, None] * self.inv_freq
        first, second = self.words(input_ids).chunk(2, dim=-1)
        turned = torch.cat([first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()], -1)
        return self.last(torch.tanh(self.mix(turned))).mean(1)
PYTHON

cat > make.py <<'PYTHON'
import torch
from own import OwnConfig, OwnModel
from transformers.utils import logging

logging.disable_progress_bar()
OwnConfig.register_for_auto_class()
OwnModel.register_for_auto_class("AutoModel")
torch.manual_seed(0)
model = OwnModel(OwnConfig())
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, 0, 0.3)
model.save_pretrained("checkpoint")
PYTHON

cat > load.py <<'PYTHON'
"""Prints: cosine of the output to the right one, largest difference of inv_freq, whether the weights are the saved ones."""

import torch
from safetensors.torch import load_file
from transformers import AutoModel
from transformers.utils import logging

logging.disable_progress_bar()
used = [torch.randn(n) for n in range(1, 2000, 7)]  # Memory that a program has used before, as any program has.
del used
loaded = AutoModel.from_pretrained("checkpoint", trust_remote_code=True)
right = type(loaded)(loaded.config)
right.load_state_dict(load_file("checkpoint/model.safetensors"))
ids = torch.arange(1, 31)[None]
with torch.no_grad():
    cosine = torch.nn.functional.cosine_similarity(loaded(ids), right(ids)).item()
difference = (loaded.inv_freq - right.inv_freq).abs().max().item()
print(f"{cosine:.4f} {difference:.3g} {torch.equal(loaded.last.weight, right.last.weight)}")
PYTHON

"$work/venv/bin/python" make.py
for _ in 1 2 3; do
    "$work/venv/bin/python" load.py >> lines
done

"$work/venv/bin/python" - <<'PYTHON'
import sys

rows = [line.split() for line in open("lines")]
print("cosine to the class itself, three processes:", *(row[0] for row in rows))
print("largest difference of inv_freq, three processes:", *(row[1] for row in rows))
print("weights of the layer with a buffer as in the checkpoint:", *sorted({row[2] for row in rows}))
# NaN counts as different, too.
buffers = len(rows) == 3 and any(not float(row[1]) < 1e-6 for row in rows)
weights = {row[2] for row in rows} == {"False"}
if not (buffers and weights):
    sys.exit("transformers 5.24.0: the behaviour has changed")
print("transformers 5.24.0 leaves unsaved buffers of own code uninitialised: still so")
PYTHON
