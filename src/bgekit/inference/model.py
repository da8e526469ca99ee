"""What every embedder offers, whatever computes its vectors."""

from __future__ import annotations

import abc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sized
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, BgekitError
from ..models.calibration_map import calibration_map
from ..models.card import UNSET, ModelCard, Unset
from ..models.families import find_family
from ..models.prompts import Prompt
from .embeddings import Embeddings, Encoded, Origin
from .pipeline import ADVICE, Collector, Tally, Window, checked_windows, computed, not_texts, split, with_progress
from .similarity import similarity

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

Kind = Literal["query", "document", "plain"]
#: Texts that are planned together: enough for batches of nearly equal length, few enough to stream.
WINDOW: Final = 2048


class Embedder(abc.ABC):
    """Texts -> vectors, with the names that FlagEmbedding and sentence-transformers users know.

    A str gives one vector [dimension], a list an array [n, dimension], an empty list an array [0, dimension], and
    any other iterable is read as a stream. Vectors are float32. The arrays are `Embeddings`: they know which texts
    were cut, and which model they are from. Texts of equal tokens are computed once in a call, and have one vector.
    """

    card: ModelCard
    #: Whether `encode` returns arrays, or tensors, unless told.
    convert_to_numpy: bool = True
    #: Texts that `encode` plans together.
    window: ClassVar[int] = WINDOW
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
        """What vectors say of where they come from."""
        return Origin(lambda: self.fingerprint, self)

    @abc.abstractmethod
    def _encode_unique(
        self, windows: Iterable[list[str]], prompt: Prompt, max_length: int | None, batch_size: int | None
    ) -> Iterator[Encoded]:
        """One result for each window of distinct, valid Unicode texts, in order."""

    def settle(self) -> None:
        """Find out what only an answer tells, such as the width of a hosted model's vectors."""

    def close(self) -> None:
        """Free what the embedder holds (worker processes); it can be used again."""

    if not TYPE_CHECKING:  # Otherwise every name would pass for an attribute.

        def __getattr__(self, name: str) -> Any:
            raise not_here(self, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        set_aside(others, OF_ENCODE, "encode")
        chosen = self._choose_prompt(self.card.default_prompt, instruction, instruction_format, prompt, prompt_name)
        progress = show_progress if show_progress is not None else show_progress_bar
        as_tensor = convert_to_tensor or not (self.convert_to_numpy if convert_to_numpy is None else convert_to_numpy)
        vectors: Embeddings = self._encode(sentences, chosen, max_length, batch_size, progress, out, as_tensor)
        return vectors

    def encode_queries(
        self, queries: str | Iterable[str], batch_size: int | None = None, max_length: int | None = None,
        convert_to_numpy: bool | None = None, *, instruction: str | Unset | None = UNSET, **options: Any,
    ) -> Embeddings:  # fmt: skip
        """Vectors of retrieval queries, with the query instruction. Arguments as `encode`."""
        return self._encode_role("query", queries, batch_size, max_length, convert_to_numpy, instruction, options)

    def encode_corpus(
        self, corpus: str | Iterable[str], batch_size: int | None = None, max_length: int | None = None,
        convert_to_numpy: bool | None = None, *, instruction: str | Unset | None = UNSET, **options: Any,
    ) -> Embeddings:  # fmt: skip
        """Vectors of passages, with the passage instruction if the model has one. Arguments as `encode`."""
        return self._encode_role("document", corpus, batch_size, max_length, convert_to_numpy, instruction, options)

    def encode_query(self, sentences: str | Iterable[str], **options: Any) -> Embeddings:
        """`encode_queries`, by the name that sentence-transformers uses."""
        return self.encode_queries(sentences, **options)

    def encode_document(self, sentences: str | Iterable[str], **options: Any) -> Embeddings:
        """`encode_corpus`, by the name that sentence-transformers uses."""
        return self.encode_corpus(sentences, **options)

    def encode_windows(
        self, windows: Iterable[list[str]], *, kind: Kind = "document", max_length: int | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Encoded]:  # fmt: skip
        """One result for each window of texts, in order, tokenisation and computation overlapped.

        The bytes of a window's vectors depend on its own texts alone. Rows in errors count from the first window.
        """
        role = self.card.default_prompt if kind == "plain" else kind
        length = max_length if max_length is not None else self._role_length(role)
        checked = checked_windows(windows, across=False, texts_stay=False)
        tally = Tally()
        for window, encoded in self._run(checked, self._prompt_of(role), length, batch_size):
            result = window.restore(encoded)
            tally.add(window.size, result)
            yield result
        tally.log(self.card.name)

    def max_length_of(self, kind: Kind) -> int:
        """Tokens at which texts of a kind are cut if a call says nothing else."""
        role = self.card.default_prompt if kind == "plain" else kind
        return self._role_length(role) or self.card.max_length

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
        """What decides how similar two texts are, beyond the number format, as plain values."""
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

    def _encode_role(
        self, role: str, texts: str | Iterable[str], batch_size: int | None, max_length: int | None,
        convert_to_numpy: bool | None, instruction: str | Unset | None, options: dict[str, Any],
    ) -> Any:  # fmt: skip
        if isinstance(instruction, Unset) and not {"prompt", "prompt_name"} & options.keys():
            options["prompt_name"] = role
        elif not isinstance(instruction, Unset):
            options["instruction"] = instruction
        length = max_length if max_length is not None else self._role_length(role)
        return self.encode(texts, batch_size, length, convert_to_numpy, **options)

    def _encode(
        self, texts: str | Iterable[str], prompt: Prompt, max_length: int | None, batch_size: int | None,
        progress: bool | None, out: npt.NDArray[Any] | None, as_tensor: bool,
    ) -> Any:  # fmt: skip
        if not isinstance(texts, Iterable):
            raise not_texts(texts)
        single = isinstance(texts, str)
        listed = [texts] if isinstance(texts, str) else texts
        total = len(listed) if isinstance(listed, Sized) else None
        windows = checked_windows(split(listed, self.window), across=True, texts_stay=total is not None)
        collector = Collector(self.dimension, total, out)
        for window, encoded in with_progress(self._run(windows, prompt, max_length, batch_size), total, progress):
            collector.add(window, encoded)
        result = collector.result()
        result.origin = self._origin
        tally = Tally()
        tally.add(len(result), result)
        tally.log(self.card.name)
        if as_tensor:
            import torch

            tensor = torch.from_numpy(np.asarray(result))
            return tensor[0] if single else tensor
        return (
            Embeddings.of(np.asarray(result)[0], result.truncated, result.repaired, result.origin) if single else result
        )

    def _run(
        self, windows: Iterable[Window[str]], prompt: Prompt, max_length: int | None, batch_size: int | None
    ) -> Iterator[tuple[Window[str], Encoded]]:
        """Each window with the vectors of its distinct texts, checked to be finite, in order."""
        check_count("batch_size", batch_size, "texts")
        check_count("max_length", max_length, "tokens")

        def compute(texts: Iterator[list[str]]) -> Iterator[Encoded]:
            return self._encode_unique(texts, prompt, max_length, batch_size)

        yield from computed(windows, compute, self.dimension, advice=self._advice)


def check_count(name: str, value: object, things: str) -> None:
    """Raise ArgumentError unless an argument is left out (None) or a positive whole number."""
    if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < 1):
        raise ArgumentError(f"{name} must be a positive number of {things}, not {value!r}")


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
