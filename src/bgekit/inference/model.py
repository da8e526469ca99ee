"""Base classes of models: the methods of every embedder, and what FlagModel and FlagReranker do alike.

Nothing here imports torch: a hosted embedder does without.
"""

from __future__ import annotations

import abc
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from ..display.terminal import Progress
from ..errors import ArgumentError, BgekitError, check_count
from ..models.calibration_map import calibration_map
from ..models.card import UNSET, ModelCard, Unset
from ..models.families import find_family
from ..models.prompts import Prompt, Role
from .pipeline import ADVICE, BLOCK_SIZE, Embeddings, Encoded, Origin, Pipeline, not_texts
from .similarity import similarity

if TYPE_CHECKING:
    from types import TracebackType

    import torch
    from transformers import PreTrainedTokenizerFast
    from typing_extensions import Self

    from .tokenization import Request
    from .workers import WorkerPool


class Model:
    """Something that computes texts and may hold processes; a context manager that ends them."""

    def close(self) -> None:
        """Free what the model holds (worker processes); it can be used again."""

    if not TYPE_CHECKING:  # Otherwise every name would pass for an attribute.

        def __getattr__(self, name: str) -> Any:
            raise not_here(self, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CheckpointModel(Model):
    """A checkpoint on one device or several: the parent of `FlagModel` and `FlagReranker`.

    Attributes:
        card: What the checkpoint says, the caller's arguments included (a ModelCard or RerankerCard).
        folder: The checkpoint.
        devices: The devices in use; short inputs are computed on the first.
        batch_size: Most sequences in a batch, None where batches are sized from the device.
    """

    card: Any
    folder: Path
    devices: tuple[torch.device, ...]
    batch_size: int | None

    def _start(self, pool: WorkerPool) -> None:
        """Use the engines of `pool` from now on; workers of further devices start when an input is large enough."""
        self._pool, self._engine, self._spec = pool, pool.engine, pool.engine.spec
        self.devices = pool.devices

    @property
    def precision(self) -> str:
        """Number format that is computed in, such as `bfloat16`."""
        return self._spec.precision

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The Hugging Face tokenizer of the checkpoint."""
        return self._engine.tokenizer

    @property
    def device(self) -> torch.device:
        """The first device, on which short inputs are computed."""
        return self.devices[0]

    def close(self) -> None:
        """End the worker processes of further devices; they start again when they are needed."""
        self._pool.close()

    def _compute_blocks(self, blocks: Iterable[Sequence[Any]], request: Request) -> Iterator[Encoded]:
        """One result for each block of inputs, in order."""
        return (self._engine if len(self.devices) == 1 else self._pool).compute(blocks, request)

    def _check_length(self, name: str, length: int | None) -> None:
        """Raise ArgumentError if the model cannot take as many tokens as the argument `name` allows."""
        limit = self.card.position_limit
        if length is not None and limit is not None and length > limit:
            raise ArgumentError(f"{name}={length} is more than {self.card.name} can take: {limit} tokens")


class Embedder(Model, abc.ABC):
    """Texts -> vectors, with the names that FlagEmbedding and sentence-transformers users know.

    A str gives one vector [dimension], a list an array [n, dimension], an empty list an array [0, dimension], and
    any other iterable is read as a stream. Vectors are float32. The arrays are `Embeddings`: they know which texts
    were cut, and which model they are from. Texts of equal tokens are computed once in a call, and have one vector.

    Example:
        >>> from bgekit import Embedder, FlagModel
        >>> model = FlagModel("BAAI/bge-small-en-v1.5")
        >>> isinstance(model, Embedder), model.dimension
        (True, 384)
    """

    card: ModelCard
    #: Whether `encode` returns arrays, or tensors, unless told.
    convert_to_numpy: bool = True
    #: Texts that `encode` plans together.
    block_size: ClassVar[int] = BLOCK_SIZE
    #: What to do where a vector has NaN or infinity.
    _advice: ClassVar[str] = ADVICE

    @property
    @abc.abstractmethod
    def dimension(self) -> int:
        """Width of the vectors."""

    @property
    @abc.abstractmethod
    def precision(self) -> str:
        """Number format that vectors are computed in, such as `bfloat16`."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides what vector a text gets."""

    @property
    def _origin(self) -> Origin:
        """Origin that vectors carry."""
        return Origin(lambda: self.fingerprint, self)

    @abc.abstractmethod
    def _compute(
        self, blocks: Iterable[list[str]], prompt: Prompt, max_length: int | None, batch_size: int | None
    ) -> Iterator[Encoded]:
        """One result for each block of distinct, valid Unicode texts, in order."""

    def settle(self) -> None:
        """Find out what only an answer tells, such as the width of a hosted model's vectors."""

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        *,
        instruction: str | Unset | None = UNSET,
        instruction_format: str | None = None,
        prompt: str | Unset | None = UNSET,
        prompt_name: str | None = None,
        convert_to_tensor: bool = False,
        show_progress: bool | None = None,
        show_progress_bar: bool | None = None,
        out: npt.NDArray[Any] | None = None,
        **others: Any,
    ) -> Embeddings:
        """Vectors of texts as they are (or with the prompt that the checkpoint declares its default).

        Args:
            sentences: A text, a list of texts, or any iterable of texts, which is streamed.
            batch_size: Most texts in a batch; by default batches are sized from the device.
            max_length: Cut texts at this many tokens, special tokens and prompt included; the card's by default.
            convert_to_numpy: Return an array; if false a torch tensor on the CPU.
            instruction: Text put before each input; None or "" for none.
            instruction_format: Template of instruction and text, two slots `{}`, of a prompt of the card, too; by
                default the instruction stands before the text.
            prompt: Another name of `instruction`, as in sentence-transformers.
            prompt_name: Use the card's prompt of this role instead.
            convert_to_tensor: Return a tensor, as in sentence-transformers.
            show_progress: Show a progress bar; by default on a terminal, from a few thousand texts on.
            show_progress_bar: Another name of `show_progress`, as in sentence-transformers.
            out: Array or memmap [n, dimension] of any float type to write into; it is returned, viewed as Embeddings.
            others: Keywords of FlagEmbedding without a use here: one warning says what holds instead.

        Raises:
            TextTypeError: an element is not a string; the message has its index.
            ArgumentError: arguments contradict each other or are impossible.
            NumericalError: a vector has NaN or infinity.
        """
        if others:
            set_aside(others, OF_ENCODE, "encode")
        chosen = self._choose_prompt(self.card.default_prompt, instruction, instruction_format, prompt, prompt_name)
        if isinstance(sentences, dict | bytes | bytearray) or not isinstance(sentences, Iterable):
            raise not_texts(sentences)
        single = isinstance(sentences, str)
        texts: Iterable[str] = [sentences] if isinstance(sentences, str) else sentences
        total = len(texts) if isinstance(texts, Sized) else None
        shown = show_progress if show_progress is not None else show_progress_bar
        with Progress("encode", "texts", total, show=shown) as bar:
            pipeline = self._pipeline(chosen, max_length, batch_size, bar.advance)
            encoded = pipeline.collect(texts, out=out, size=self.block_size)
        vectors: Any = encoded.vectors[0] if single else encoded.vectors
        if convert_to_tensor or not (self.convert_to_numpy if convert_to_numpy is None else convert_to_numpy):
            import torch

            tensor: Any = torch.from_numpy(vectors)
            return tensor  # type: ignore[no-any-return]
        return Embeddings.of(vectors, tuple(encoded.truncated), tuple(encoded.repaired), self._origin)

    def encode_queries(
        self,
        queries: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        *,
        instruction: str | Unset | None = UNSET,
        instruction_format: str | None = None,
        prompt: str | Unset | None = UNSET,
        prompt_name: str | None = None,
        convert_to_tensor: bool = False,
        show_progress: bool | None = None,
        show_progress_bar: bool | None = None,
        out: npt.NDArray[Any] | None = None,
        **others: Any,
    ) -> Embeddings:
        """Vectors of retrieval queries, with the query instruction. Arguments as `encode`."""
        return self.encode(
            queries, batch_size, self._length("query", max_length), convert_to_numpy,
            instruction=instruction, instruction_format=instruction_format, prompt=prompt,
            prompt_name=self._prompt_name("query", instruction, prompt, prompt_name),
            convert_to_tensor=convert_to_tensor, show_progress=show_progress, show_progress_bar=show_progress_bar,
            out=out, **others,
        )  # fmt: skip

    def encode_corpus(
        self,
        corpus: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        *,
        instruction: str | Unset | None = UNSET,
        instruction_format: str | None = None,
        prompt: str | Unset | None = UNSET,
        prompt_name: str | None = None,
        convert_to_tensor: bool = False,
        show_progress: bool | None = None,
        show_progress_bar: bool | None = None,
        out: npt.NDArray[Any] | None = None,
        **others: Any,
    ) -> Embeddings:
        """Vectors of passages, with the passage instruction if the model has one. Arguments as `encode`."""
        return self.encode(
            corpus, batch_size, self._length("document", max_length), convert_to_numpy,
            instruction=instruction, instruction_format=instruction_format, prompt=prompt,
            prompt_name=self._prompt_name("document", instruction, prompt, prompt_name),
            convert_to_tensor=convert_to_tensor, show_progress=show_progress, show_progress_bar=show_progress_bar,
            out=out, **others,
        )  # fmt: skip

    def encode_query(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        *,
        instruction: str | Unset | None = UNSET,
        instruction_format: str | None = None,
        prompt: str | Unset | None = UNSET,
        prompt_name: str | None = None,
        convert_to_tensor: bool = False,
        show_progress: bool | None = None,
        show_progress_bar: bool | None = None,
        out: npt.NDArray[Any] | None = None,
        **others: Any,
    ) -> Embeddings:
        """Vectors of queries: `encode_queries` by the name that sentence-transformers uses."""
        return self.encode_queries(
            sentences, batch_size, max_length, convert_to_numpy,
            instruction=instruction, instruction_format=instruction_format, prompt=prompt, prompt_name=prompt_name,
            convert_to_tensor=convert_to_tensor, show_progress=show_progress, show_progress_bar=show_progress_bar,
            out=out, **others,
        )  # fmt: skip

    def encode_document(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        *,
        instruction: str | Unset | None = UNSET,
        instruction_format: str | None = None,
        prompt: str | Unset | None = UNSET,
        prompt_name: str | None = None,
        convert_to_tensor: bool = False,
        show_progress: bool | None = None,
        show_progress_bar: bool | None = None,
        out: npt.NDArray[Any] | None = None,
        **others: Any,
    ) -> Embeddings:
        """Vectors of passages: `encode_corpus` by the name that sentence-transformers uses."""
        return self.encode_corpus(
            sentences, batch_size, max_length, convert_to_numpy,
            instruction=instruction, instruction_format=instruction_format, prompt=prompt, prompt_name=prompt_name,
            convert_to_tensor=convert_to_tensor, show_progress=show_progress, show_progress_bar=show_progress_bar,
            out=out, **others,
        )  # fmt: skip

    def encode_blocks(
        self,
        blocks: Iterable[list[str]],
        *,
        role: Role | str = "document",
        max_length: int | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Encoded]:
        """One result for each block of texts, in order, tokenisation and computation overlapped.

        The bytes of a block's vectors depend on its own texts alone. Rows in errors count from the first block.

        Args:
            blocks: Lists of texts, which are read as they are needed.
            role: Which prompt and maximum length the texts get: those of the role `query` or `document`, or of another
                prompt of the card by its name, or (`plain`) those of the card's default prompt, if it has one.
            max_length: Cut texts at this many tokens; the role's by default.
            batch_size: Most texts in a batch; by default batches are sized from the device.
        """
        prompt = self.card.default_prompt if role == "plain" else role
        return self._pipeline(self._prompt_of(prompt), self._length(prompt, max_length), batch_size).run(blocks)

    def encode_windows(
        self, windows: Iterable[list[str]], *, kind: str = "document", max_length: int | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Encoded]:  # fmt: skip
        """`encode_blocks` by its name in 0.1.0."""
        advice = "encode_windows(windows, kind=) has become encode_blocks(blocks, role=)"
        warnings.warn(advice, DeprecationWarning, stacklevel=2)
        return self.encode_blocks(windows, role=kind, max_length=max_length, batch_size=batch_size)

    def max_length_of(self, role: Role | str) -> int:
        """Tokens at which texts of a role are cut if a call says nothing else."""
        return self._role_length(self.card.default_prompt if role == "plain" else role) or self.card.max_length

    def similarity(self, a: npt.ArrayLike, b: npt.ArrayLike, *, calibrated: bool = False) -> npt.NDArray[np.float32]:
        """Scores [n, m] of vectors [n, d] and [m, d] in float32: cosine, or what the card says; higher is nearer.

        Args:
            a: Vectors of this model.
            b: Others.
            calibrated: Turn the scores into what the calibration in the card makes of them, from 0 to 1: the
                probability that two texts are related, or the share of unrelated pairs that are less similar.

        Raises:
            ArgumentError: the vectors have different widths.
            CardError: the card has no calibration, or one of another model.
        """
        scores = similarity(a, b, self.card.similarity)
        return calibration_map(self.card, self.similarity_facts())(scores) if calibrated else scores

    @property
    def weights_fingerprint(self) -> str:
        """sha256 (hex) of what was learnt: the weights without the settings, where they can be told apart."""
        return self.fingerprint

    def similarity_facts(self) -> dict[str, Any]:
        """Settings that decide how similar two texts are, beyond the number format, as plain values."""
        card = self.card
        return {
            "weights": self.weights_fingerprint,
            "pooling": card.pooling,
            "normalize": card.normalize,
            "similarity": card.similarity,
            "dimension": self.dimension,
        }

    def _prompt_of(self, role: str | None) -> Prompt:
        return self.card.prompt(role)

    def _role_length(self, role: str | None) -> int | None:
        """Maximum length that the caller set for a role, None for the card's."""
        return None

    def _choose_prompt(
        self, role: str | None, instruction: str | Unset | None, template: str | None,
        prompt: str | Unset | None, prompt_name: str | None,
    ) -> Prompt:  # fmt: skip
        if instruction is UNSET:
            instruction = prompt
        elif prompt is not UNSET and prompt != instruction:
            raise ArgumentError(f"instruction={instruction!r} and prompt={prompt!r} are two names of one argument")
        if prompt_name is not None:
            if instruction is not UNSET:
                raise ArgumentError("give either a prompt's text or its name (prompt_name), not both")
            if prompt_name not in self.card.prompts:
                known = ", ".join(map(repr, self.card.prompts))
                raise ArgumentError(f"{self.card.name} has no prompt named {prompt_name!r}; it has {known}")
            return self._formatted(prompt_name, template)
        if isinstance(instruction, Unset):
            return self._formatted(role, template)
        return Prompt.from_format(instruction, template or "{}{}")

    def _formatted(self, role: str | None, template: str | None) -> Prompt:
        """The prompt of a role, its instruction in another template if there is one."""
        prompt = self._prompt_of(role)
        if template is None or not prompt:
            return prompt
        family = find_family(self.card.name)
        return prompt.in_format(template, family.template if family and role == "query" else None)

    def _length(self, role: str | None, max_length: int | None) -> int | None:
        return max_length if max_length is not None else self._role_length(role)

    def _prompt_name(
        self, role: Role, instruction: str | Unset | None, prompt: str | Unset | None, prompt_name: str | None
    ) -> str | None:
        """Name of the prompt that texts of a role get: the role's own unless the caller names or gives another."""
        given = prompt_name is not None or not isinstance(instruction, Unset) or not isinstance(prompt, Unset)
        return prompt_name if given else role

    def _pipeline(
        self,
        prompt: Prompt,
        max_length: int | None,
        batch_size: int | None,
        on_block: Callable[[int, int], None] | None = None,
    ) -> Pipeline[str]:
        check_count("batch_size", batch_size, "texts")
        check_count("max_length", max_length, "tokens")

        def compute(blocks: Iterator[list[str]]) -> Iterator[Encoded]:
            return self._compute(blocks, prompt, max_length, batch_size)

        return Pipeline(compute, self.dimension, model=self.card.name, advice=self._advice, on_block=on_block)


def optional_prompt(instruction: str | Unset | None, template: str) -> Prompt | Unset:
    """The prompt of a caller's instruction and template, UNSET where no instruction was given."""
    return UNSET if isinstance(instruction, Unset) else Prompt.from_format(instruction, template)


logger = logging.getLogger(__name__)
_DENSE: Final = "a model has its dense vectors here, which encode returns as an array"
_EXAMPLES: Final = "queries are encoded without in-context examples"
_LANGUAGE_MODEL: Final = "it belongs to rerankers on language models; this one is a cross-encoder"
_DEVICES: Final = "all devices of the model are used; devices= of the class names them"
#: Keywords of the original's embedders (1.2 to 1.4) without a use here -> what holds instead.
OF_EMBEDDERS: Final[Mapping[str, str]] = {
    "colbert_dim": _DENSE,
    "return_dense": _DENSE,
    "return_sparse": _DENSE,
    "return_colbert_vecs": _DENSE,
    "examples_for_task": _EXAMPLES,
    "examples_instruction_format": _EXAMPLES,
    "suffix": "what follows a query comes from the model's card, or from query_instruction_format=",
    "domain_for_pseudo_moe": "models with experts by domain are not in bgekit",
}
#: The same of their methods.
OF_ENCODE: Final[Mapping[str, str]] = {
    "return_dense": _DENSE,
    "return_sparse": _DENSE,
    "return_colbert_vecs": _DENSE,
    "task": "the card's prompts are used; pass those of another task as instruction=",
    "device": _DEVICES,
}
#: The same of rerankers and of `compute_score`.
OF_RERANKERS: Final[Mapping[str, str]] = {
    "passage_max_length": "the passage has what the query leaves of max_length",
    "device": _DEVICES,
    "peft_path": f"{_LANGUAGE_MODEL}. `bge merge` puts an adapter into its base",
    "prompt": _LANGUAGE_MODEL,
    "cutoff_layers": _LANGUAGE_MODEL,
    "compress_layer": _LANGUAGE_MODEL,
    "compress_layers": _LANGUAGE_MODEL,
    "compress_ratio": _LANGUAGE_MODEL,
    "use_dataloader": "texts are tokenised by threads while the model computes",
    "num_workers": "texts are tokenised by threads while the model computes",
}
_WORKERS: Final = "is not needed: {} uses all devices; model.close(), or `with {}(...) as model:`, ends the workers"
_POOLS: Final = (
    "encode_single_device", "encode_queries_single_device", "compute_score_single_gpu", "compute_score_single_device",
    "start_multi_process_pool", "encode_multi_process", "compute_score_multi_process", "stop_multi_process_pool",
    "stop_self_pool",
)  # fmt: skip
#: Other names of the original's objects -> what there is instead.
_NAMES: Final[Mapping[str, str]] = {
    "get_target_devices": "is not needed: model.devices are those in use",
    "target_devices": "is model.devices here",
    "num_gpus": "is len(model.devices) here",
    "get_detailed_instruct": "is not needed: encode takes instruction= and instruction_format=",
    "get_detailed_inputs": "is not needed: instructions are put before texts by compute_score",
    "get_model_torch_dtype": "is not needed: model.precision says in which format is computed",
    "pooling": "is not needed: encode pools as model.card.pooling says",
    "pooling_method": "is model.card.pooling here",
    "normalize_embeddings": "is model.card.normalize here",
    "query_instruction_for_retrieval": 'is model.card.prompt("query") here',
    "passage_instruction_for_retrieval": 'is model.card.prompt("document") here',
    "encode_keys": "is encode_corpus here",
    "set_examples": f"is not there: {_EXAMPLES}",
    "compute_score": "is not there: similarity(a, b) compares vectors, and FlagReranker scores pairs",
    "compute_lexical_matching_score": f"is not there: {_DENSE}",
    "colbert_score": f"is not there: {_DENSE}",
    "convert_id_to_token": "is not there: use model.tokenizer.decode",
}
_said: set[tuple[str, str]] = set()


class NotHereError(BgekitError, AttributeError):
    """A method or attribute of the original's classes that bgekit does not have; the message says what to use."""


def set_aside(given: Mapping[str, Any], known: Mapping[str, str], callee: str) -> None:
    """Warn, once a process, of keywords that FlagEmbedding takes and that have no use here.

    Args:
        given: Keywords without a parameter, with their values.
        known: Those of the original -> what holds instead.
        callee: What was called, for messages.

    Raises:
        ArgumentError: a keyword is none of the original's either.
    """
    for name, value in given.items():
        if name not in known:
            raise ArgumentError(f"{callee} has no argument {name!r}")
        # What is off or left out in the original is so here.
        if value is None or value is False or (callee, name) in _said:
            continue
        _said.add((callee, name))
        logger.warning("%s=%r of %s has no effect: %s", name, value, callee, known[name])


def not_here(owner: object, name: str) -> AttributeError:
    """The error for an attribute that an object lacks: one of the original's says what there is instead."""
    kind = type(owner).__name__
    if name in _POOLS:
        verb = "compute_score" if hasattr(type(owner), "compute_score") else "encode"
        return NotHereError(f"{name} {_WORKERS.format(verb, kind)}")
    if name in _NAMES:
        return NotHereError(f"{name} of {kind} {_NAMES[name]}")
    return AttributeError(f"{kind!r} object has no attribute {name!r}")
