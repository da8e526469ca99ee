"""Networks that a checkpoint brings as Python code: as many on the hub do it, small.

The file is imported by tests, and copied into checkpoints.
"""

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput


class OwnConfig(PretrainedConfig):
    model_type = "own-rotary"

    def __init__(self, hidden_size=32, vocab_size=300, theta=10000.0, fault=None, **options):
        super().__init__(**{"pad_token_id": 0} | options)
        self.hidden_size, self.vocab_size, self.theta, self.fault = hidden_size, vocab_size, theta, fault


class Rotary(nn.Module):
    """Angles as nomic-bert has them, and tables as gte has them."""

    def __init__(self, width, theta, longest):
        super().__init__()
        inv_freq = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        angles = torch.arange(longest, dtype=torch.float32)[:, None] * inv_freq
        self.register_buffer("cos", angles.cos().to(torch.get_default_dtype()), persistent=False)

    def forward(self, hidden):
        length = hidden.shape[1]
        first, second = hidden.chunk(2, dim=-1)
        sin = (torch.arange(length)[:, None] * self.inv_freq.float()).sin().to(hidden.dtype)
        cos = self.cos[:length]
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class Scaled(nn.Linear):
    """A linear layer with a buffer beside its weights."""

    def __init__(self, width):
        super().__init__(width, width)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, hidden):
        return super().forward(hidden) * self.scale


class OwnBase(PreTrainedModel):
    config_class = OwnConfig
    base_model_prefix = "own"

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(0.0, 0.02)
        if isinstance(module, nn.Linear):
            module.bias.data.zero_()


class OwnModel(OwnBase):
    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, width)
        self.rotary = Rotary(width, config.theta, 512)
        self.last = Scaled(width)
        self.gain = nn.Parameter(torch.ones(width))
        self.pooler = Scaled(width)
        self.register_buffer("position_ids", torch.arange(512)[None])
        if config.fault == "random":
            self.register_buffer("noise", torch.rand(width), persistent=False)
        if config.fault == "attribute":
            self.shift = torch.full((width,), 0.25)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **others):
        words = self.words(input_ids) + 0.001 * self.position_ids[:, : input_ids.shape[1], None].to(self.gain.dtype)
        hidden = self.last(torch.tanh(self.rotary(words))) * self.gain
        if self.config.fault == "random":
            hidden = hidden + self.noise
        if self.config.fault == "attribute":
            hidden = hidden + self.shift
        return BaseModelOutput(last_hidden_state=hidden)


class OwnLoader(OwnModel):
    """A class that reads its checkpoint by itself, as nomic-bert does."""

    @classmethod
    def from_pretrained(cls, folder, config=None, **options):
        model = cls(config)
        model.load_state_dict(load_file(f"{folder}/model.safetensors"), strict=False)
        return model


class OwnForSequenceClassification(OwnBase):
    def __init__(self, config):
        super().__init__(config)
        self.own = OwnModel(config)
        self.classifier = nn.Parameter(torch.linspace(-1, 1, config.hidden_size)[None])
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **others):
        hidden = self.own(input_ids).last_hidden_state[:, 0]
        return SequenceClassifierOutput(logits=hidden @ self.classifier.T)
