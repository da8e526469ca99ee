"""FlagModel: a checkpoint as an embedder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from ..errors import ArgumentError, CheckpointError, NumericalError, check_count
from ..files.atomic import target_folder
from ..files.hashing import digest
from ..models.card import UNSET, ModelCard, Pooling, Prompt, Unset
from ..models.card_reading import family_of, read_card, refuse_reranker
from ..models.checkpoint_files import fingerprint, hidden_size, read_config
from ..models.families import find_family, is_hosted
from ..models.head_files import DENSE, Output, heads_fingerprint
from ..models.hub import resolve
from ..networks.encoder import Encoder, encoder_class, load_encoder, load_transformer, loading_dtype
from ..networks.heads import Outputs, TokenHeads, read_heads
from ..networks.loading import choose_precision, stored_prefix
from ..networks.packing import Packed
from ..networks.saving import weights_digest, write_checkpoint
from .engine import Spec, WorkerPool, resolve_devices
from .model import CheckpointModel, Embedder, optional_prompt, set_aside
from .pipeline import Encoded, Origin
from .tokenization import Request, TextRequest, Tokens, backend_of, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .tokenization import AnyTokenizer

logger = logging.getLogger(__name__)
#: Least cosine to the stored self-test vector (float32) by precision; a wrong pooling gives about 0.8.
_SELFTEST_COSINE: Final = {"float32": 0.9999, "bfloat16": 0.99, "float16": 0.99, "int8": 0.97}
#: Families and folders whose advice has been logged in this process.
_noticed: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class EmbedderSpec(Spec[Encoder]):
    """The engine of an embedder: texts -> vectors.

    Attributes:
        card: What is applied to the checkpoint.
        truncate_dim: Leading dimensions to keep, None for all.
    """

    card: ModelCard
    truncate_dim: int | None = None

    @property
    def lower_case(self) -> bool:
        """See `Spec`."""
        return self.card.lower_case

    def load_network(self, device: torch.device) -> Encoder:
        """See `Spec`."""
        return load_encoder(
            self.folder,
            self.card,
            precision=self.precision,
            device=device,
            truncate_dim=self.truncate_dim,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
        )

    def pack(self, tokens: Tokens, batch: Sequence[int]) -> Packed:
        """See `Spec`."""
        excluded = tokens.prompt_length if not self.card.include_prompt else 0
        skip = [excluded] * len(batch) if excluded else None
        return Packed.of([tokens.ids[row] for row in batch], skip)

    def prepare(self, network: Any, request: Request) -> None:
        """See `Spec`."""
        network.load_heads(self.folder, request.outputs)

    def outputs(self, network: Any, batch: Packed, request: Request) -> Outputs:
        """See `Spec`."""
        excluded = torch.tensor(request.excluded, dtype=torch.long, device=batch.input_ids.device)
        return network.outputs(batch, request.outputs, excluded)


def _check_places(pooling_method: object, normalize_embeddings: object, use_fp16: object) -> None:
    """See to it that arguments without names stand in the order of FlagEmbedding 1.2, and are of their kinds.

    Raises:
        ArgumentError: they are not.
    """
    if isinstance(pooling_method, bool):
        given = f"normalize_embeddings={pooling_method}" + (
            f", use_fp16={normalize_embeddings}" if isinstance(normalize_embeddings, bool) else ""
        )
        raise ArgumentError(
            f"pooling_method is a name such as 'cls', not {pooling_method}. Without names the order is that of "
            "FlagEmbedding 1.2: pooling_method, normalize_embeddings, query_instruction_for_retrieval, use_fp16; in "
            f"1.3 and 1.4 it is another. Give names: FlagModel(..., {given})"
        )
    for name, value in (("normalize_embeddings", normalize_embeddings), ("use_fp16", use_fp16)):
        if isinstance(value, str):
            raise ArgumentError(f"{name} is True or False, not {value!r}")


class FlagModel(CheckpointModel, Embedder):
    """A text embedding model: a checkpoint, with everything that its card says applied.

    Pooling, normalisation, instructions and maximum length come from the checkpoint and the table of known
    families; arguments override them. The model is loaded when it is made; further devices start when an input
    is large enough to pay for it.

    Example:
        >>> from bgekit import FlagModel
        >>> model = FlagModel("BAAI/bge-small-en-v1.5")
        >>> queries = model.encode_queries(["what is the capital of France?"])
        >>> passages = model.encode(["Paris is the capital of France.", "Bread is baked in an oven."])
        >>> model.similarity(queries, passages).shape
        (1, 2)
    """

    card: ModelCard
    _spec: EmbedderSpec
    #: Whether a model that is not an embedder yet deserves a warning; training loads such on purpose.
    _to_be_used = True

    def __new__(cls, model_name_or_path: str | os.PathLike[str], *args: Any, **options: Any) -> Any:
        """Leave the name of a hosted model to `load_model`, whose type says what comes of it, as no class's can."""
        if is_hosted(os.fspath(model_name_or_path)):
            return load_model(model_name_or_path, *args, **options)
        return super().__new__(cls)

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        pooling_method: Pooling | Unset = UNSET,
        normalize_embeddings: bool | Unset = UNSET,
        query_instruction_for_retrieval: str | Unset | None = UNSET,
        use_fp16: bool = True,
        *,
        use_bf16: bool = False,
        query_instruction_format: str | None = None,
        passage_instruction_for_retrieval: str | Unset | None = UNSET,
        passage_instruction_format: str | None = None,
        devices: str | int | torch.device | Sequence[str | int | torch.device] | None = None,
        device: str | int | torch.device | None = None,
        batch_size: int | None = None,
        max_length: int | Unset = UNSET,
        query_max_length: int | None = None,
        passage_max_length: int | None = None,
        convert_to_numpy: bool = True,
        truncate_dim: int | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        **others: Any,
    ) -> None:
        """Load a model.

        Args:
            model_name_or_path: A folder, a Hugging Face id, or `packaged:NAME`.
            pooling_method: `cls`, `mean`, `max`, `weighted_mean` or `last_token`.
            normalize_embeddings: Whether vectors have unit length.
            query_instruction_for_retrieval: Text before queries in `encode_queries`; None or "" for none.
            use_fp16: Compute in the fastest 16-bit format of the device (float32 where none is fast).
            use_bf16: Compute in bfloat16.
            query_instruction_format: Template of instruction and query, two slots `{}`, of the model's own instruction
                too; by default what the model's family uses, which for most is the instruction followed by the query.
            passage_instruction_for_retrieval: Text before passages in `encode_corpus`; None or "" for none.
            passage_instruction_format: The same for passages.
            devices: One device or several (`"cuda:0"`, `1`, `["cpu", "cpu"]`); by default every visible GPU,
                else the CPU. A device named twice has two workers.
            device: Another name of `devices`, as in sentence-transformers.
            batch_size: Maximum number of texts per batch; by default batches are sized from the device.
            max_length: Cut texts at this many tokens.
            query_max_length: The same for `encode_queries`.
            passage_max_length: The same for `encode_corpus`.
            convert_to_numpy: Whether `encode` returns arrays by default, or tensors.
            truncate_dim: Keep this many leading dimensions, then normalise (for Matryoshka models).
            dtype: Format to compute in: `float32`, `bfloat16`, `float16`, `int8`; overrides `use_fp16`.
            revision: Branch, tag or commit on the hub.
            cache_dir: Where files from the hub are kept.
            trust_remote_code: Allow a checkpoint to bring its own Python code.
            allow_pickle: Allow weights in `.bin` files.
            others: Keywords of FlagEmbedding without a use here: one warning says what holds instead.

        Raises:
            CheckpointError: there is no such model, or its files are damaged.
            CardError: pooling is known to nobody, or the model is not an embedder.
            ArgumentError: an argument is impossible.
        """
        set_aside(others, "FlagModel")
        _check_places(pooling_method, normalize_embeddings, use_fp16)
        check_count("batch_size", batch_size, "texts")
        check_count("truncate_dim", truncate_dim, "dimensions")
        check_count("query_max_length", query_max_length, "tokens")
        check_count("passage_max_length", passage_max_length, "tokens")
        name = os.fspath(model_name_or_path)
        refuse_reranker(name, find_family(name))
        folder = resolve(
            name, revision=revision, cache_dir=cache_dir, allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        family = family_of(name, folder)
        template = query_instruction_format or (family.template if family else None) or "{}{}"
        self.card = read_card(
            folder,
            name,
            pooling=pooling_method,
            normalize=normalize_embeddings,
            query=optional_prompt(query_instruction_for_retrieval, template),
            document=optional_prompt(passage_instruction_for_retrieval, passage_instruction_format or "{}{}"),
            query_format=query_instruction_format or UNSET,
            document_format=passage_instruction_format or UNSET,
            max_length=max_length,
        )
        self._check_length("query_max_length", query_max_length)
        self._check_length("passage_max_length", passage_max_length)
        # That prompts are unknown is no news for an encoder that is to become an embedder, pooled as its trainer says.
        of_use = self._to_be_used or self.card.family or self.card.sources["pooling"] != "caller"
        if self.card.notice and of_use:
            _say_once(self.card.family or f"{folder.resolve()}: prompts", "%s: %s", self.card.name, self.card.notice)
        if self.card.pretrained_only and self._to_be_used:
            _say_once(
                str(folder.resolve()), "%s is only pre-trained and not yet an embedder: it must be fine-tuned with "
                "contrastive learning (bge finetune) before its vectors mean anything", self.card.name,
            )  # fmt: skip
        self.folder = folder
        self.batch_size = batch_size
        self.query_max_length, self.passage_max_length = query_max_length, passage_max_length
        self.convert_to_numpy = convert_to_numpy
        if truncate_dim is not None and not 1 <= truncate_dim <= (width := self.card.dimension):
            raise ArgumentError(f"truncate_dim={truncate_dim} must be from 1 to the model's {width} dimensions")
        self._truncate_dim = truncate_dim
        used = resolve_devices(devices if devices is not None else device)
        spec = EmbedderSpec(
            folder=folder,
            card=self.card,
            precision=choose_precision(
                used[0], dtype=dtype, use_fp16=use_fp16, use_bf16=use_bf16, model_type=self.card.architecture
            ),
            truncate_dim=self._truncate_dim,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        self._start(WorkerPool(spec, used))
        self._check_selftest()

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self._truncate_dim or self.card.dimension

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the checkpoint gives: `dense`, and what it has heads for, as BGE-M3 and its kind do."""
        return (*DENSE, *self.card.heads)

    @cached_property
    def vocabulary(self) -> int:
        """Columns of lexical weights: token ids are below it."""
        return int(read_config(self.folder)["vocab_size"])

    @cached_property
    def token_dimension(self) -> int:
        """Width of multi-vectors.

        Raises:
            CheckpointError: the head for them is missing, damaged or of another shape.
        """
        head = self._read_heads(("multi-vector",)).multi_vector
        assert head is not None, "it was read"
        return min(head.out_features, self._truncate_dim or head.out_features)

    def _read_heads(self, outputs: tuple[Output, ...]) -> TokenHeads:
        return read_heads(self.folder, hidden_size(read_config(self.folder)), outputs)

    def _check_heads(self, outputs: tuple[Output, ...]) -> None:
        self._read_heads(outputs)

    def output_fingerprint(self, output: Output) -> str:
        """See `Embedder`."""
        if output == "dense":
            return self.fingerprint
        return digest(self.fingerprint, heads_fingerprint(self.folder, output))

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of weights, tokenizer, card, precision and the lengths that the caller set for roles."""
        return self._compute_fingerprint()

    @cached_property
    def _origin(self) -> Origin:
        return Origin(self._compute_fingerprint, self)

    @cached_property
    def _compute_fingerprint(self) -> Callable[[], str]:
        """A function that computes the fingerprint, once; it holds on to no weights."""
        return lru_cache(maxsize=1)(partial(_fingerprint, self._spec, self.query_max_length, self.passage_max_length))

    @cached_property
    def weights_fingerprint(self) -> str:
        """sha256 (hex) of the weights alone."""
        return weights_digest(self.folder, allow_pickle=self._spec.allow_pickle)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The network of the checkpoint as transformers runs it: padded inputs -> `last_hidden_state`.

        Loaded when it is first asked for, with weights of its own: `encode` computes with faster code, and does not see
        what is changed here.
        """
        network = load_transformer(
            self.folder, dtype=loading_dtype(self.precision, self.device), packed=False,
            trust_remote_code=self._spec.trust_remote_code, allow_pickle=self._spec.allow_pickle,
        )  # fmt: skip
        return network.to(self.device)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Save the model in the layout that sentence-transformers 2.7 to 6.2 and text-embeddings-inference read.

        The weights are written in the precision that the checkpoint has, whatever this model computes in.
        The folder appears complete or not at all.

        Args:
            path: Folder to make.
            overwrite: Replace a folder that is there.

        Raises:
            OutputError: the folder exists or cannot be written.
            NumericalError: the model gives another vector when it is loaded again.
        """
        target = target_folder(Path(path), overwrite)  # Before the work, not after it.
        trust, pickles = self._spec.trust_remote_code, self._spec.allow_pickle
        # Loaded again: what differs from one load to the next is not a property of the model, and shows here.
        encoder = load_encoder(self.folder, self.card, trust_remote_code=trust, allow_pickle=pickles)
        selftest = make_selftest(encoder, self._engine.tokenizer, self.card, torch.device("cpu"))
        cosine, least = self._selftest_cosine(selftest)
        if not cosine >= least:
            raise NumericalError(
                f"{self.folder} gives other vectors each time it is loaded (a cosine of {cosine:.5f}, not {least}), so "
                "it is not saved: something in it is neither among its weights nor made by its code"
            )
        prefix = stored_prefix(self.folder, encoder_class, trust_remote_code=trust, allow_pickle=pickles)
        write_checkpoint(
            target, card=self.card, source=self.folder, prefix=prefix, selftest=selftest, overwrite=overwrite,
            allow_pickle=pickles, remote_code=trust,
        )  # fmt: skip

    def _role_length(self, role: str | None) -> int | None:
        return {"query": self.query_max_length, "document": self.passage_max_length}.get(role or "")

    def _compute(
        self, blocks: Iterable[list[str]], prompt: Prompt, max_length: int | None, batch_size: int | None
    ) -> Iterator[Encoded]:
        return self._compute_outputs(blocks, prompt, max_length, batch_size, DENSE)

    def _compute_outputs(
        self, blocks: Iterable[list[str]], prompt: Prompt, max_length: int | None, batch_size: int | None,
        outputs: tuple[Output, ...],
    ) -> Iterator[Encoded]:  # fmt: skip
        length = max_length or self.card.max_length
        self._check_length("max_length", length)
        excluded = self._excluded if "sparse" in outputs else ()
        size = batch_size or self.batch_size
        request = TextRequest(prompt, length, batch_size=size, outputs=outputs, excluded=excluded)
        return self._compute_blocks(blocks, request)

    @cached_property
    def _excluded(self) -> tuple[int, ...]:
        """Ids of tokens without a lexical weight."""
        return special_ids(self._engine.tokenizer)

    def _check_selftest(self) -> None:
        """Compare the vector of a fixed text with the one that `save` stored, if it did."""
        stored, overridden = self.card.selftest, {"pooling", "normalize"}
        if stored is None or any(self.card.sources.get(field) == "caller" for field in overridden):
            return
        cosine, least = self._selftest_cosine(stored)
        if not cosine >= least:
            if (weights_then := stored.get("weights")) is not None and weights_then != self.weights_fingerprint:
                # sentence-transformers before 5.4 copies the self-test when it saves a model that it has trained.
                logger.warning(
                    "the weights in %s are not those that its self-test was made for: it was trained or changed since. "
                    "FlagModel(folder).save(folder, overwrite=True) makes a new self-test", self.folder,
                )  # fmt: skip
                return
            raise CheckpointError(
                f"{self.folder} fails its self-test: the vector of {stored['text']!r} has a cosine of {cosine:.5f} to "
                f"the one stored when the model was saved, at least {least} is expected in {self.precision}. "
                "A file was changed since then: the tokenizer, config.json, or 1_Pooling/config.json."
            )

    def _selftest_cosine(self, stored: Mapping[str, Any]) -> tuple[float, float]:
        """The cosine of the vector of a self-test to the stored one, and what it must be at least."""
        expected = np.asarray(stored["vector"], dtype=np.float32)[: self.dimension]
        # As long as when it was saved: a caller's shorter max_length must not cut this text.
        length = int(stored.get("max_length") or self.card.max_length)
        got = np.asarray(self.encode(stored["text"], max_length=length, prompt=None, convert_to_numpy=True))
        cosine = float(got @ expected / max(float(np.linalg.norm(got) * np.linalg.norm(expected)), 1e-12))
        return cosine, _SELFTEST_COSINE[self.precision]


def _fingerprint(spec: EmbedderSpec, query_max_length: int | None, passage_max_length: int | None) -> str:
    weights = fingerprint(spec.folder, allow_pickle=spec.allow_pickle)
    card = {key: value for key, value in spec.card.to_dict().items() if key not in ("name", "family")}
    lengths = [str(query_max_length), str(passage_max_length)]
    # Only where there are some, so that what was stored without them is found again.
    own = [] if lengths == ["None", "None"] else lengths
    return digest(weights, repr(card), spec.precision, str(spec.truncate_dim), *own)


def _say_once(key: str, message: str, *args: str) -> None:
    if key not in _noticed:
        _noticed.add(key)
        logger.warning(message, *args)


#: The text of the self-test: case, an accent, Chinese, digits and punctuation, so that a wrong tokenizer shows.
SELFTEST_TEXT: Final = "Self-test: 文本向量 of 2 Élan vital, done."


def save_model(model: FlagModel, path: Path, *, overwrite: bool = False) -> None:
    """`FlagModel.save` by its name in 0.1.0."""
    model.save(path, overwrite=overwrite)


def make_selftest(encoder: Encoder, tokenizer: AnyTokenizer, card: ModelCard, device: torch.device) -> dict[str, Any]:
    """The self-test of a model: a text and its vector without prompt, as `FlagModel` checks it at load.

    Args:
        encoder: The network in float32, on `device`, giving all its dimensions.
        tokenizer: The tokenizer; it is left as it is.
        card: The card that is saved with it.
        device: Where the network is.

    Raises:
        NumericalError: the vector has NaN or infinity.
    """
    backend = backend_of(tokenizer)
    backend.enable_truncation(card.max_length)
    with torch.inference_mode():
        vector = encoder(Packed.of([backend.encode(SELFTEST_TEXT).ids]).to(device))[0].float().cpu().numpy()
    if not bool(np.isfinite(vector).all()):
        raise NumericalError(
            f"{card.name} gives NaN or infinity as the vector of {SELFTEST_TEXT!r}: its weights are damaged"
        )
    # The shortest decimal number that is read back as the same float32.
    values = [float(str(value)) for value in vector]
    return {"text": SELFTEST_TEXT, "max_length": card.max_length, "vector": values}


def load_model(model_name_or_path: str | os.PathLike[str], **options: Any) -> Embedder:
    """An embedder by its name, be it a checkpoint or a hosted model.

    `FlagModel(name)` of a hosted model comes here, too, for the sake of names in settings; to type checkers and readers
    this function says what the class cannot: that the result may be either.

    Args:
        model_name_or_path: A folder, a Hugging Face id or `packaged:NAME`, which give a `FlagModel`; or the name of a
            hosted model such as `text-embedding-3-small`, which gives an `OpenAIEmbedder`.
        options: Arguments of that class.

    Raises:
        CheckpointError: there is no such model, or its files are damaged.
        CardError: pooling is known to nobody, or the model is not an embedder.
        ArgumentError: an argument is impossible.
        ApiError: the model is hosted, and there is no key.

    Example:
        >>> from bgekit import load_model
        >>> load_model("text-embedding-3-small", api_key="sk-...").dimension
        1536
    """
    name = os.fspath(model_name_or_path)
    if is_hosted(name):
        from .openai import OpenAIEmbedder

        return OpenAIEmbedder(name, **options)
    return FlagModel(name, **options)
