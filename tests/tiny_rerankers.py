"""Tiny random cross-encoders, with the pair templates of their architectures."""

from __future__ import annotations

from pathlib import Path

#: `<s> query </s></s> passage </s>`, in the special tokens of the tiny tokenizer.
TWO_SEPARATORS = "[CLS] $A [SEP] [SEP] $B [SEP]"


def make_classifier(folder: Path, kind: str, labels: int, seed: int) -> Path:
    """Turn a bare tiny encoder into a sequence classifier, in place."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("classifier", "pre_classifier", "head")) or "pooler" in name:
                parameter.normal_(0, 0.3)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder)
    if kind != "bert":
        _without_types(folder, "[CLS] $A [SEP] $B [SEP]" if kind in ("modernbert", "distilbert") else TWO_SEPARATORS)
    return folder


def _without_types(folder: Path, pair: str) -> None:
    """A tokenizer that makes no token types."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    specials = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=specials)
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=64, model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    ).save_pretrained(folder)  # fmt: skip
