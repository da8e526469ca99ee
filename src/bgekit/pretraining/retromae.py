"""RetroMAE: an encoder that masks little, and a decoder of one layer that has little more than the text's vector.

The encoder sees a text with some of its words masked and predicts them (MLM). Its vector of the first token, h, then
has to be enough for the decoder to find every token of the text (arXiv:2205.12035, "enhanced decoding"):

    H1 = [h + p_1, ..., h + p_N]            queries
    H2 = [h, e_1, ..., e_N]                 keys and values, e_j the embedding of the unmasked token and its position
    A  = softmax(H1 Wq (H2 Wk)^T / sqrt(d) + M) H2 Wv,   M as in `masking.visible`

A and H1, added and normalised as in any layer, go through the layer's second half and the encoder's own MLM head. The
loss is the mean over masked tokens of the encoder's cross entropy, plus the mean over all tokens (special ones
excepted) of the decoder's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from ..errors import ArgumentError
from ..models.checkpoint_files import padding_position
from ..networks.encoder import PackedBackbone, PaddedBackbone, Trainable, can_pack
from ..networks.packing import Packed
from .masking import MaskedBatch, visible

#: Logits that are held at once; with more tokens they are computed in parts, and once more on the way back.
_LOGITS: Final = 1 << 26
#: Pairs of positions whose mask is made at once.
_PAIRS: Final = 1 << 22


class RetroMAE(Trainable, nn.Module):
    """Encoder, decoder, and the head that both predict tokens with.

    Args:
        lm: A masked language model of transformers, whose encoder and head are trained.
        share: Share of the words that a position of the decoder does not see.
    """

    def __init__(self, lm: Any, share: float) -> None:
        super().__init__()
        base = lm.base_model
        config = base.config
        self.backbone = (PackedBackbone if can_pack(base) else PaddedBackbone)(base)
        self.head = head_of(lm)
        self.share = share
        self.vocabulary = int(config.vocab_size)
        self.padding_position = padding_position(config.model_type, config.pad_token_id)
        if self.padding_position is not None:
            # MPNet counts from a padding token of its own, whatever the config says.
            self.padding_position = int(getattr(base.embeddings, "padding_idx", self.padding_position))
        self._takes_positions = "position_ids" in inspect.signature(base.embeddings.forward).parameters
        if not self._takes_positions:
            # Rotary embeddings turn the encoder's keys; the decoder, which is thrown away, learns positions instead.
            self.positions = nn.Embedding(int(config.max_position_embeddings), int(config.hidden_size))
            nn.init.normal_(self.positions.weight, std=_initial(config))
        self.decoder = Decoder(config)

    @property
    def transformer(self) -> Any:
        """The Hugging Face model that becomes the result."""
        return self.backbone.model

    def forward(self, batch: MaskedBatch) -> Tensor:
        """[4] float32: summed loss of encoder and decoder, and how many tokens each finds; differentiable."""
        hidden = self.backbone(batch.masked, "all")
        ids = batch.original.input_ids
        encoder_loss, encoder_right = self._token_losses(hidden[batch.hidden], ids[batch.hidden])
        decoded = self.decode(hidden[batch.masked.starts], batch)
        decoder_loss, decoder_right = self._token_losses(decoded[batch.content], ids[batch.content])
        return torch.stack([encoder_loss, decoder_loss, encoder_right, decoder_right])

    def decode(self, vectors: Tensor, batch: MaskedBatch) -> Tensor:
        """States of the decoder for the texts' vectors: [n, h] -> [T, h]."""
        packed = batch.original
        of_token = vectors.repeat_interleave(packed.lengths_tensor, dim=0, output_size=batch.tokens)
        embedded, positions = self._embedded(packed)
        first = (packed.positions == 0)[:, None]
        keys = torch.where(first, of_token.to(embedded.dtype), embedded)
        return self.decoder(of_token + positions, keys, batch, self.share)

    def _embedded(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Embeddings of tokens and positions together, and of positions alone, both [T, h]."""
        layer: Any = self.transformer.embeddings
        ids = packed.input_ids[None]
        if not self._takes_positions:
            positions = self.positions(packed.positions)
            return layer(input_ids=ids)[0] + positions, positions
        places = packed.positions_for(self.padding_position)
        return layer(input_ids=ids, position_ids=places[None])[0], layer.position_embeddings(places)

    def _token_losses(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross entropy of tokens [m] after their states [m, h], and how many are the likeliest."""
        rows = max(1, _LOGITS // self.vocabulary)
        if len(hidden) <= rows:
            return self._token_losses_at_once(hidden, labels)
        parts = [
            checkpoint(self._token_losses_at_once, hidden[at : at + rows], labels[at : at + rows], use_reentrant=False)
            for at in range(0, len(hidden), rows)
        ]
        losses, right = zip(*parts, strict=True)
        return torch.stack(losses).sum(), torch.stack(right).sum()

    def _token_losses_at_once(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        right = (logits.detach().argmax(-1) == labels).sum().to(logits.dtype)
        return cross_entropy(logits, labels, reduction="sum"), right

    def weights(self) -> dict[str, Tensor]:
        """The encoder's weights by their names in a checkpoint."""
        return {name: value for name, value in self.transformer.state_dict().items() if not name.startswith("pooler.")}

    def beside(self) -> dict[str, Tensor]:
        """The weights of head and decoder, without what the encoder has already."""
        own = {value.data_ptr() for value in self.transformer.state_dict().values()}
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("backbone.") and value.data_ptr() not in own
        }


class Decoder(nn.Module):
    """One transformer layer (post-norm) whose queries are not its keys.

    Args:
        config: The encoder's; the layer has its sizes, activation and dropout.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        def of(*names: str, default: Any = None) -> Any:
            return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), default)

        width, self.heads = int(config.hidden_size), int(config.num_attention_heads)
        inner, eps = int(of("intermediate_size", "hidden_dim")), float(of("layer_norm_eps", "norm_eps", default=1e-12))
        self.attention_dropout = float(of("attention_probs_dropout_prob", "attention_dropout", default=0.0))
        dropout = float(of("hidden_dropout_prob", "dropout", "embedding_dropout", default=0.0))
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.attention_norm, self.norm = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.activation = ACT2FN[of("hidden_act", "activation", "hidden_activation", default="gelu")]
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_initial(config))
                nn.init.zeros_(module.bias)

    def forward(self, queries: Tensor, keys: Tensor, batch: MaskedBatch, share: float) -> Tensor:
        """[T, h]: a state for each position.

        Args:
            queries: [T, h] the text's vector plus each position's embedding.
            keys: [T, h] embeddings, the text's vector in place of the first.
            batch: The sequences.
            share: Share of the words that a position does not see.
        """
        attended = self._attention(self.query(queries), self.key(keys), self.value(keys), batch, share)
        states = self.attention_norm(queries + self.dropout(self.output(attended)))
        inner = self.narrow(self.activation(self.widen(states)))
        result: Tensor = self.norm(states + self.dropout(inner))
        return result

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, batch: MaskedBatch, share: float) -> Tensor:
        """[T, h], computed for a few sequences of nearly equal length at once."""
        outputs, places = [], []
        for index, valid in _attention_blocks(batch.original):
            q, k, v = (each[index].unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (query, key, value))
            seen = visible(batch.words[index], batch.seeds[batch_of(batch.original, index[:, 0])], share)
            if valid is not None:
                seen = seen & valid[:, None, :]
            dropped = self.attention_dropout if self.training else 0.0
            result = scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], dropout_p=dropped)
            result = result.transpose(1, 2).flatten(2)
            outputs.append(result.flatten(0, 1) if valid is None else result[valid])
            places.append(index.flatten() if valid is None else index[valid])
        return torch.cat(outputs)[torch.cat(places).argsort()]


def batch_of(packed: Packed, tokens: Tensor) -> Tensor:
    """Numbers of the sequences that tokens belong to."""
    return torch.searchsorted(packed.starts, tokens.contiguous(), right=True) - 1


def _attention_blocks(packed: Packed) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows of the tokens [n, L] of some sequences, and which of them are no padding [n, L] (None if all)."""
    for group in packed.groups:
        count, length = group.index.shape
        size = max(1, _PAIRS // length**2)
        for start in range(0, count, size):
            part = slice(start, start + size)
            yield group.index[part], None if group.valid is None else group.valid[part]


def head_of(lm: Any) -> nn.Module:
    """The head of a masked language model, which turns states into logits, whatever its class calls it.

    Raises:
        ArgumentError: it has none that is known.
    """
    for name in ("cls", "lm_head"):
        if isinstance(module := getattr(lm, name, None), nn.Module):
            return module
    for names in (("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"), ("head", "decoder")):
        parts = [getattr(lm, name, None) for name in names]
        if all(isinstance(part, nn.Module) for part in parts):
            return nn.Sequential(*parts)  # type: ignore[arg-type]
    raise ArgumentError(
        f"{type(lm).__name__} has no head that bgekit knows: RetroMAE trains BERT, RoBERTa and their kin"
    )


def _initial(config: Any) -> float:
    return float(getattr(config, "initializer_range", 0.02))
