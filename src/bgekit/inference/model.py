"""Base classes of models: the methods of every embedder, and what FlagModel and FlagReranker do alike.

Nothing here imports torch: a hosted embedder does without.
"""

from __future__ import annotations

import abc
import logging
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from ..display.terminal import Progress
from ..errors import ArgumentError, BgekitError, check_count
from ..files.yaml_tables import packaged_yaml
from ..models.calibration_map import calibration_map
from ..models.card import UNSET, ModelCard, Prompt, Role, Unset
from ..models.families import find_family
from ..models.head_files import DENSE, OUTPUTS, Output
from .pipeline import ADVICE, BLOCK_SIZE, Embeddings, Encoded, Origin, Pipeline, not_texts
from .similarity import similarity
from .stored_tokenizer import StoredTokenizer

if TYPE_CHECKING:
    from types import TracebackType

    import torch
    from transformers import PreTrainedTokenizerFast
    from typing_extensions import Self

    from .engine import WorkerPool
    from .tokenization import Request


#: Texts that are planned together where token vectors are computed, whose bytes are many times those of dense ones.
_MULTI_BLOCK: Final = 256


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
        batch_size: Maximum number of sequences per batch, None where batches are sized from the device.
    """

    card: Any
    folder: Path
    devices: tuple[torch.device, ...]
    batch_size: int | None

    def __repr__(self) -> str:
        card = self.card
        shape = [f"{card.dimension} dimensions, pooling {card.pooling}"] if hasattr(card, "pooling") else []
        where = f"{self.precision} on {', '.join(map(str, self.devices))}"
        return f"{type(self).__name__}({card.name!r}: {', '.join([*shape, where])})"

    def _start(self, pool: WorkerPool) -> None:
        """Use the engines of `pool` from now on; workers of further devices start when an input is large enough."""
        self._pool, self._engine, self._spec = pool, pool.engine, pool.engine.spec
        self.devices = pool.devices

    @property
    def precision(self) -> str:
        """Number format that is computed in, such as `bfloat16`."""
        return self._spec.precision

    @property
    def arithmetic(self) -> dict[str, str]:
        """How this machine computes in the model's number format, with a `class` that is equal where bits are."""
        from ..networks.arithmetic import arithmetic_of

        return arithmetic_of(self.precision, self.devices)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The Hugging Face tokenizer of the checkpoint.

        Made when it is first asked for; it gives the tokens that the model computes with, which has one of its own.
        """
        own = self._engine.tokenizer
        return self._spec.load_tokenizer() if isinstance(own, StoredTokenizer) else own

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
    def arithmetic(self) -> dict[str, str] | None:
        """How this machine computes, with a `class` that is equal where bits are; None where a server computes."""
        return None

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

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What the model computes of a text, as `encode_blocks` takes it: every model has `dense`."""
        return DENSE

    def check_outputs(self, outputs: Collection[Output]) -> None:
        """Check, before any work, that the model gives some outputs.

        Raises:
            ArgumentError: none are named, one is unknown, or the model is of a kind that gives dense vectors alone.
            CheckpointError: a head that they take is missing, damaged or of another shape.
        """
        unknown = [output for output in outputs if output not in OUTPUTS]
        if unknown or not outputs:
            what = f"there is no output {unknown[0]!r}" if unknown else "name at least one output"
            raise ArgumentError(f"{what}: outputs are {', '.join(OUTPUTS)}")
        heads = tuple(output for output in OUTPUTS if output in outputs and output != "dense")
        if heads:
            self._check_heads(heads)

    def _check_heads(self, outputs: tuple[Output, ...]) -> None:
        """See `check_outputs`, for outputs that take heads."""
        raise ArgumentError(f"{self.card.name} gives dense vectors alone, not {' and '.join(outputs)} ones")

    def output_fingerprint(self, output: Output) -> str:
        """sha256 (hex) of all that decides an output: `fingerprint`, and the head that it takes."""
        return self.fingerprint

    @property
    def vocabulary(self) -> int:
        """Columns of lexical weights: token ids are below it."""
        raise ArgumentError(f"{self.card.name} has no lexical weights")

    @property
    def token_dimension(self) -> int:
        """Width of multi-vectors."""
        raise ArgumentError(f"{self.card.name} has no multi-vectors")

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
            batch_size: Maximum number of texts per batch; by default batches are sized from the device.
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
            set_aside(others, "encode")
        single = isinstance(sentences, str)
        encoded = self.encode_outputs(
            [sentences] if isinstance(sentences, str) else sentences, batch_size=batch_size, max_length=max_length,
            instruction=instruction, instruction_format=instruction_format, prompt=prompt, prompt_name=prompt_name,
            show_progress=show_progress if show_progress is not None else show_progress_bar, out=out,
        )  # fmt: skip
        vectors: Any = encoded.vectors[0] if single else encoded.vectors
        if convert_to_tensor or not (self.convert_to_numpy if convert_to_numpy is None else convert_to_numpy):
            import torch

            tensor: Any = torch.from_numpy(vectors)
            return tensor  # type: ignore[no-any-return]
        return Embeddings.of(vectors, tuple(encoded.truncated), tuple(encoded.repaired), self._origin)

    def encode_outputs(
        self,
        texts: Iterable[str],
        outputs: Collection[Output] = DENSE,
        *,
        role: Role = "plain",
        batch_size: int | None = None,
        max_length: int | None = None,
        instruction: str | Unset | None = UNSET,
        instruction_format: str | None = None,
        prompt: str | Unset | None = UNSET,
        prompt_name: str | None = None,
        show_progress: bool | None = None,
        out: npt.NDArray[Any] | None = None,
    ) -> Encoded:
        """Several outputs of texts from one pass; arguments that are not named here as of `encode`.

        Args:
            texts: The texts, which are streamed.
            outputs: What is computed: `dense`, and what else the model gives (`Embedder.outputs`).
            role: Whose prompt and maximum length they get by default.
            batch_size: See `encode`.
            max_length: See `encode`.
            instruction: See `encode`.
            instruction_format: See `encode`.
            prompt: See `encode`.
            prompt_name: See `encode`.
            show_progress: See `encode`.
            out: See `encode`.

        Raises:
            TextTypeError: an element is not a string; the message has its index.
            ArgumentError: arguments contradict each other or are impossible.
            CheckpointError: a head that an output takes is missing, damaged or of another shape.
            NumericalError: a result has NaN or infinity.

        Example:
            >>> from bgekit import FlagModel
            >>> model = FlagModel("BAAI/bge-small-en-v1.5")
            >>> model.encode_outputs(["one text", "another"], role="query").vectors.shape
            (2, 384)
        """
        if isinstance(texts, str | dict | bytes | bytearray) or not isinstance(texts, Iterable):
            raise not_texts(texts)
        self.check_outputs(outputs)
        if role != "plain":
            prompt_name = self._prompt_name(role, instruction, prompt, prompt_name)
            max_length = self._length(role, max_length)
        chosen = self._choose_prompt(self.card.default_prompt, instruction, instruction_format, prompt, prompt_name)
        size = min(self.block_size, _MULTI_BLOCK) if "multi-vector" in outputs else self.block_size
        total = len(texts) if isinstance(texts, Sized) else None
        with Progress("encode", "texts", total, show=show_progress) as bar:
            pipeline = self._pipeline(chosen, max_length, batch_size, bar.advance, outputs)
            return pipeline.collect(texts, out=out, size=size)

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
        outputs: Collection[Output] = DENSE,
        progress: Callable[[float, int], None] | None = None,
    ) -> Generator[Encoded, None, None]:
        """One result for each block of texts, in order, tokenisation and computation overlapped.

        The bytes of a block's vectors depend on its own texts alone. Rows in errors count from the first block.

        Args:
            blocks: Lists of texts, which are read as they are needed.
            role: Which prompt and maximum length the texts get: those of the role `query` or `document`, or of another
                prompt of the card by its name, or (`plain`) those of the card's default prompt, if it has one.
            max_length: Cut texts at this many tokens; the role's by default.
            batch_size: Maximum number of texts per batch; by default batches are sized from the device.
            outputs: What is computed, all from one pass (see `check_outputs`): vectors, and what `Encoded.ragged` has.
            progress: Called with the texts (a share of a block counts) and tokens of each batch, from any thread.
        """
        prompt = self.card.default_prompt if role == "plain" else role
        length = self._length(prompt, max_length)
        self.check_outputs(outputs)
        return self._pipeline(self.card.prompt(prompt), length, batch_size, progress, outputs).run(blocks)

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
        prompt = self.card.prompt(role)
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
        progress: Callable[[float, int], None] | None = None,
        outputs: Collection[Output] = DENSE,
    ) -> Pipeline[str]:
        """What takes one call: texts -> the outputs, which `check_outputs` has seen."""
        check_count("batch_size", batch_size, "texts")
        check_count("max_length", max_length, "tokens")
        heads = tuple(output for output in OUTPUTS if output in outputs and output != "dense")
        width = self.dimension if "dense" in outputs else 0

        def compute(blocks: Iterator[list[str]]) -> Iterator[Encoded]:
            if not heads:
                return self._compute(blocks, prompt, max_length, batch_size)
            wanted: tuple[Output, ...] = ("dense", *heads) if width else heads
            return self._compute_outputs(blocks, prompt, max_length, batch_size, wanted)

        return Pipeline(
            compute, width, model=self.card.name, ragged=heads, advice=self._advice, progress=progress
        )  # fmt: skip

    def _compute_outputs(
        self, blocks: Iterable[list[str]], prompt: Prompt, max_length: int | None, batch_size: int | None,
        outputs: tuple[Output, ...],
    ) -> Iterator[Encoded]:  # fmt: skip
        """`_compute` of a model with heads, for outputs that take them."""
        raise NotImplementedError


def optional_prompt(instruction: str | Unset | None, template: str) -> Prompt | Unset:
    """The prompt of a caller's instruction and template, UNSET where no instruction was given."""
    return UNSET if isinstance(instruction, Unset) else Prompt.from_format(instruction, template)


logger = logging.getLogger(__name__)
#: Names of FlagEmbedding that have no use here, and what holds instead.
_ORIGINALS: Final = "flag_embedding.yaml"
_WORKERS: Final = "is not needed: {} uses all devices; model.close(), or `with {}(...) as model:`, ends the workers"
_said: set[tuple[str, str]] = set()


class NotHereError(BgekitError, AttributeError):
    """A method or attribute of the original's classes that bgekit does not have; the message says what to use."""


@lru_cache
def _originals() -> Mapping[str, Any]:
    """By class or function its keywords, and the attributes -> what holds or is there instead."""
    names: Mapping[str, Any] = packaged_yaml(__package__, _ORIGINALS)
    return names


def set_aside(given: Mapping[str, Any], callee: str) -> None:
    """Warn, once a process, of keywords that FlagEmbedding takes and that have no use here.

    Args:
        given: Keywords without a parameter, with their values.
        callee: What was called, as it is called in the table of the original's keywords, too.

    Raises:
        ArgumentError: a keyword is none of the original's either.
    """
    for name, value in given.items():
        known: Mapping[str, str] = _originals()[callee]
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
    if name in _originals()["pools"]:
        verb = "compute_score" if hasattr(type(owner), "compute_score") else "encode"
        return NotHereError(f"{name} {_WORKERS.format(verb, kind)}")
    if name in (known := _originals()["attributes"]):
        return NotHereError(f"{name} of {kind} {known[name]}")
    return AttributeError(f"{kind!r} object has no attribute {name!r}")
