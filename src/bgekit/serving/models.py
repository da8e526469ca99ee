"""The models of a server: their names and aliases, loaded and let go, texts in and vectors or scores out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ..data.encodings import repair
from ..errors import ArgumentError, BgekitError, CheckpointError, UsageError
from ..models.card import ModelCard, Prompt, RerankerCard
from ..models.card_reading import is_classifier, read_card, read_reranker_card
from ..models.checkpoint_files import hidden_size, read_config
from ..models.families import is_hosted
from ..models.head_files import stored_heads
from ..models.hub import resolve
from .errors import NotFound, TooLarge, Unprocessable, Unready

if TYPE_CHECKING:
    from ..inference.embedder import FlagModel
    from ..inference.engine import Worker
    from ..inference.reranker import FlagReranker
    from ..inference.tokenization import PairTokenizer, TextTokenizer, Tokens
    from .scheduler import Result, Results, Scheduler
    from .settings import Settings
    from .trace import Trace

logger = logging.getLogger(__name__)
Kind = Literal["embedder", "reranker"]
#: What comes after a name: which prompt texts get.
Alias = Literal["query", "document"]
ALIASES: Final[tuple[Alias, ...]] = ("query", "document")
Side = Literal["right", "left"]
#: What is computed of a text or a pair: its vector or score, and that before it is scaled to unit length; the weights
#: of its distinct tokens and the vectors of its tokens, by heads as BGE-M3 has them; and of each token where it stands,
#: what the last layer gives, and its weight.
Output = Literal["vector", "raw", "sparse", "multi-vector", "hidden", "weights"]
#: Outputs -> the head that gives them.
_HEADS: Final[Mapping[Output, Literal["sparse", "multi-vector"]]] = {
    "sparse": "sparse", "weights": "sparse", "multi-vector": "multi-vector",
}  # fmt: skip
#: Numbers of an answer that has some for each token: what JSON needs 20 bytes for.
_NUMBERS: Final = 8 * 1024 * 1024
T = TypeVar("T")
#: Characters of a token as long as none were counted, and how much more than the mean a request's may have.
_CHARACTERS: Final = 4.0
_MORE: Final = 1.5
#: Share of a request in that mean.
_LEARNT: Final = 0.05
#: Sequences and tokens of the batch that shows how fast a model is.
_TRIAL: Final = (4, 64)
#: Token ids that every vocabulary has.
_FILLER: Final = [1 + each % 90 for each in range(64)]
#: Characters and texts of a request that is tokenised at once: a fraction of a millisecond.
_QUICK: Final = 1000
_QUICK_TEXTS: Final = 4
#: Tokenizers that are kept for a model.
_TOKENIZERS: Final = 32
#: Settings of one model, of `serve.yaml`: name -> argument of FlagModel and of FlagReranker.
OPTIONS: Final[Mapping[str, tuple[str | None, str | None]]] = {
    "dtype": ("dtype", "dtype"), "max_length": ("max_length", "max_length"), "pooling": ("pooling_method", None),
    "revision": ("revision", "revision"), "cache_dir": ("cache_dir", "cache_dir"),
    "trust_remote_code": ("trust_remote_code", "trust_remote_code"), "allow_pickle": ("allow_pickle", "allow_pickle"),
}  # fmt: skip


@dataclass(frozen=True)
class Embedded:
    """Vectors of the texts of a request.

    Attributes:
        vectors: [n, d] float32, finite.
        tokens: Of each text, special tokens and prompt included, after it was cut.
        truncated: Positions of texts that were cut, ascending.
    """

    vectors: npt.NDArray[np.float32]
    tokens: list[int]
    truncated: list[int]


@dataclass(frozen=True)
class Outputs:
    """What is computed of the texts of a request where it is not a vector of each.

    Attributes:
        values: Of each text, by the output: `sparse` an array of (`token`, `weight`), `multi-vector` and `hidden`
            [m, d], `weights` [m], float32, finite.
        tokens: As in `Embedded`.
        truncated: As in `Embedded`.
    """

    values: list[Result]
    tokens: list[int]
    truncated: list[int]


@dataclass(frozen=True)
class Scored:
    """Scores of the pairs of a request.

    Attributes:
        scores: [n] float32, as the model gives them (no sigmoid), finite.
        tokens: Of each pair, special tokens included, after it was cut.
        truncated: Positions of pairs that were cut, ascending.
    """

    scores: npt.NDArray[np.float32]
    tokens: list[int]
    truncated: list[int]


class Loaded:
    """A model in memory, with its workers on further devices: what the scheduler computes with.

    Attributes:
        name: By which requests name it.
        model: The model.
        seconds_per_token: What a token costs one stream, measured.
        exact: Whether a result does not depend on the number of threads.
        most: Most tokens of a batch; None on a CPU, where the scheduler chooses.
        used: Requests that it is kept in memory for.
        characters_per_token: Mean of the requests before, the last ones counting most.
    """

    def __init__(self, name: str, model: FlagModel | FlagReranker) -> None:
        """Start the workers, load heads, and compute a batch.

        Raises:
            CheckpointError: a head is damaged, or the model gives NaN.
        """
        from ..inference.tokenization import TokenRequest, Tokens

        self.name, self.model = name, model
        self.engine = model._engine
        self.exact = bool(self.engine.network.exact)
        self.most = None if self.engine.device.type == "cpu" else self.engine.token_budget
        self.used = 0
        self.characters_per_token = _CHARACTERS
        self._pool = model._pool
        self._lock = threading.Lock()
        if len(model.devices) > 1:
            self._pool.start()
            for place in range(1, len(model.devices)):
                self._warm(self._pool.workers[place - 1])
        self._tokenizers: dict[Any, Any] = {}
        # A head that is damaged is no matter of the first request for it.
        self.engine.spec.prepare(self.engine.network, TokenRequest(outputs=getattr(model, "outputs", ())))
        count, length = _TRIAL
        trial = Tokens([_FILLER[:length]] * count)
        tried = self.engine.batch(trial)  # What is compiled and tried at the first time is not what a token costs.
        if not np.isfinite(tried.vectors).all():
            raise CheckpointError(
                f"{model.card.name} gives NaN or infinity: its weights are damaged, or its number format "
                f"({model.precision}) is too narrow (dtype: float32)"
            )
        start = time.perf_counter()
        self.engine.batch(trial)
        self.seconds_per_token = max(1e-7, (time.perf_counter() - start) / (count * length))

    @staticmethod
    def _warm(worker: Worker) -> None:
        """Have a worker load the model."""
        from ..inference.tokenization import TokenRequest

        worker.compute([_FILLER], TokenRequest())

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the library `tokenizers`, cutting nothing."""
        from ..inference.tokenization import backend_of

        return backend_of(self.engine.tokenizer)

    @cached_property
    def _hidden(self) -> int:
        return hidden_size(read_config(self.model.folder))

    def most_tokens(self, output: Output) -> int:
        """Tokens that a request may have, where an answer has numbers for each: it would be hundreds of megabytes."""
        if output == "multi-vector":
            return _NUMBERS // int(self.model.token_dimension)  # type: ignore[union-attr]
        return _NUMBERS // self._hidden if output == "hidden" else sys.maxsize

    def text_tokenizer(self, prompt: Prompt) -> TextTokenizer:
        """The tokenizer of texts with a prompt of the card."""
        from ..inference.tokenization import TextTokenizer

        return self._kept(prompt, lambda: TextTokenizer(self.engine.tokenizer, prompt, self.model.card.max_length))

    def has_tokenizer(self, prompt: Prompt) -> bool:
        """Whether the tokenizer of texts with a prompt is there: making one takes up to a second."""
        return prompt in self._tokenizers

    def pair_tokenizer(self, max_length: int | None, query_max_length: int | None) -> PairTokenizer:
        """The tokenizer of pairs of a reranker, at other lengths if they are given."""
        from ..inference.tokenization import PairTokenizer

        request: Any = self.model._request  # type: ignore[union-attr]
        request = replace(
            request,
            max_length=min(max_length or request.max_length, request.max_length),
            query_max_length=query_max_length or request.query_max_length,
        )
        return self._kept(request, lambda: PairTokenizer(self.engine.tokenizer, request))

    def _kept(self, key: Any, make: Callable[[], T]) -> T:
        found: T | None = self._tokenizers.get(key)
        if found is None:
            if len(self._tokenizers) >= _TOKENIZERS:  # Clients choose lengths.
                self._tokenizers.clear()
            found = self._tokenizers[key] = make()
        return found

    def compute(self, place: int, tokens: Tokens, *, output: str, threads: int) -> Results:
        """See `Computer`; `output` is an `Output`."""
        from ..inference.tokenization import TokenRequest

        engine, model = self.engine, self.model
        if output in ("hidden", "weights"):
            return engine.each_token(tokens, threads=threads, weights=output == "weights")
        if output == "sparse":
            excluded = model._excluded  # type: ignore[union-attr]
            request = TokenRequest(tokens.prompt_length, outputs=("sparse",), excluded=excluded)
            return engine.batch(tokens, threads=threads, request=request).ragged["sparse"]
        if output == "multi-vector":
            request = TokenRequest(tokens.prompt_length, outputs=("multi-vector",))
            return engine.batch(tokens, threads=threads, request=request).ragged["multi-vector"]
        if place == 0 or output == "raw":  # Workers have the network as the card says.
            return engine.batch(tokens, threads=threads, raw=output == "raw").vectors
        typed = tokens.types is not None
        inputs = tokens.ids if tokens.types is None else list(zip(tokens.ids, tokens.types, strict=True))
        return self._worker(place).compute(inputs, TokenRequest(tokens.prompt_length, typed)).vectors

    def _worker(self, place: int) -> Worker:
        with self._lock:
            return self._pool.workers[place - 1]

    def replace_worker(self, place: int) -> None:
        """See `Computer`."""
        dead = self._worker(place)
        dead.close()
        fresh = self._pool.started(place)
        with self._lock:
            self._pool.workers[place - 1] = fresh  # Where `close` finds it.
        self._warm(fresh)

    def kill_worker(self, place: int) -> bool:
        """See `Computer`."""
        if place == 0:
            return False
        self._worker(place).process.kill()
        return True

    def close(self) -> None:
        """End the workers."""
        self.model.close()


class Served:
    """One model of a server.

    Attributes:
        name: By which requests name it.
        id: What it was started with: a folder, an id on the hub or `packaged:NAME`.
        kind: `embedder` or `reranker`.
        card: What its files say; known before it is loaded.
        classes: Names of the classes of a reranker, as its `config.json` has them; empty for embedders.
        heads: Outputs of an embedder beside its vectors: `sparse`, `multi-vector`.
        created: When the server took it up, in seconds since 1970.
    """

    def __init__(
        self, name: str, path: str | os.PathLike[str] | FlagModel | FlagReranker, options: Mapping[str, Any],
        settings: Settings, scheduler: Scheduler, tokenizing: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        """Read what the model's files say; weights are loaded by `load`.

        Raises:
            CheckpointError: there is no such model, or its files are damaged.
            CardError: pooling is known to nobody.
            UsageError: a setting is not one of this kind of model.
        """
        self.name, self.created = name, int(time.time())
        self._settings, self._scheduler, self._tokenizing = settings, scheduler, tokenizing
        self._lock = threading.Lock()
        self._loading: Future[Loaded] | None = None
        self._loaded: Loaded | None = None
        self._was_loaded = False
        self._last_used = time.monotonic()
        self.error = ""
        self._given: Any = None
        self.kind: Kind
        self.card: ModelCard | RerankerCard
        if not isinstance(path, str | os.PathLike):
            self._given, self.id, self.card = path, str(path.card.name), path.card
            self.kind = "embedder" if isinstance(path.card, ModelCard) else "reranker"
            self._arguments: dict[str, Any] = {}
            self.classes, self.heads = _beside(self.card, path.folder)
            return
        self.id = os.fspath(path)
        if is_hosted(self.id):
            raise UsageError(f"{self.id} is a hosted model: only models that are computed here can be served")
        hub = {key: options[key] for key in ("revision", "cache_dir", "trust_remote_code") if key in options}
        folder = resolve(self.id, card_only=True, **hub)
        self.kind = "reranker" if is_classifier(read_config(folder)) else "embedder"
        self._arguments = self._checked(options)
        length = {"max_length": options["max_length"]} if "max_length" in options else {}
        if self.kind == "reranker":
            self.card = read_reranker_card(folder, self.id, **length)
        else:
            pooling = {"pooling": options["pooling"]} if "pooling" in options else {}
            self.card = read_card(folder, self.id, **length, **pooling)
        self.classes, self.heads = _beside(self.card, folder)

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The settings as arguments of the model's class."""
        arguments: dict[str, Any] = {}
        for key, value in options.items():
            argument = OPTIONS[key][self.kind == "reranker"] if key in OPTIONS else None
            if argument is None:
                known = ", ".join(key for key, each in OPTIONS.items() if each[self.kind == "reranker"])
                raise UsageError(f"{self.name} is {_a(self.kind)}, which has no setting {key!r}; it has {known}")
            arguments[argument] = value
        return arguments

    @property
    def dimension(self) -> int:
        """Width of the vectors of an embedder."""
        return self.card.dimension if isinstance(self.card, ModelCard) else 1

    @property
    def max_length(self) -> int:
        """Tokens at which its inputs are cut."""
        return self.card.max_length

    @property
    def precision(self) -> str:
        """Number format that it computes in, such as `bfloat16`; before it is loaded, that of its files."""
        return self._loaded.model.precision if self._loaded is not None else self.card.dtype

    @property
    def matryoshka_dims(self) -> tuple[int, ...]:
        """Widths that vectors may be cut to, by what the card says; empty where it says nothing."""
        return tuple(self.card.matryoshka_dims) if isinstance(self.card, ModelCard) else ()

    @property
    def loaded(self) -> Loaded | None:
        """The model in memory, None as long as it is not."""
        return self._loaded

    @property
    def was_loaded(self) -> bool:
        """Whether it is in memory, or was and has been let go."""
        return self._was_loaded

    @property
    def model(self) -> Any:
        """The model itself (`FlagModel` or `FlagReranker`), None as long as it is not loaded."""
        return None if self._loaded is None else self._loaded.model

    @property
    def state(self) -> str:
        """`loaded`, `loading`, `failed` or `unloaded`."""
        if self._loaded is not None:
            return "loaded"
        if self._loading is not None:
            return "loading"
        return "failed" if self.error else "unloaded"

    # Loading.

    def _make(self) -> Loaded:
        if self._given is not None:
            return Loaded(self.name, self._given)
        from ..inference.embedder import FlagModel
        from ..inference.reranker import FlagReranker

        start = time.monotonic()
        devices = None if self._settings.devices is None else list(self._settings.devices)
        kind: Any = FlagReranker if self.kind == "reranker" else FlagModel
        loaded = Loaded(self.name, kind(self.id, devices=devices, **self._arguments))
        logger.info(
            "%s: %s, loaded in %.1f s, about %d tokens a second", self.name, loaded.model, time.monotonic() - start,
            round(1 / loaded.seconds_per_token),
        )  # fmt: skip
        return loaded

    def _start_loading(self, again: bool = False) -> Future[Loaded]:
        """The model being loaded, by one thread, for all who wait for it."""
        with self._lock:
            if self._loading is not None:
                return self._loading
            future: Future[Loaded] = Future()
            if self._loaded is not None and not again:
                future.set_result(self._loaded)
                return future
            self._loading = future
        threading.Thread(target=self._load_into, args=(future,), name=f"bgekit-load-{self.name}", daemon=True).start()
        return future

    def _load_into(self, future: Future[Loaded]) -> None:
        try:
            loaded = self._make()
            beside = _beside(loaded.model.card, loaded.model.folder)  # Other files may lie there by now.
        except BaseException as error:
            logger.error("%s cannot be loaded: %s", self.name, error, exc_info=not isinstance(error, BgekitError))
            with self._lock:
                self.error, self._loading = str(error), None
            future.set_exception(error)
            return
        with self._lock:
            before, self._loaded, self._loading, self.error = self._loaded, loaded, None, ""
            self._was_loaded, self.card = True, loaded.model.card
            self.classes, self.heads = beside
            self._last_used = time.monotonic()
        future.set_result(loaded)
        if before is not None:
            self._retire(before)

    def _retire(self, loaded: Loaded) -> None:
        """End a model's workers once nothing is being computed with it."""
        while True:
            with self._lock:
                if not loaded.used:
                    break
            time.sleep(0.05)
        if self._given is None:
            loaded.close()

    def load(self) -> None:
        """Load it, if it is not loaded.

        Raises:
            BgekitError: it cannot be.
        """
        self._start_loading().result()

    async def ready(self) -> None:
        """Wait until it is loaded.

        Raises:
            Unready: it cannot be.
        """
        await self._acquired(0)

    async def reload(self) -> None:
        """Load its files again and compute with those from now on; until then, and if it fails, with the old ones.

        Raises:
            Unready: they cannot be loaded, or fail their self-test.
        """
        if self._given is not None:
            raise Unprocessable(f"{self.name} was made by the program that started the server: it has no files")
        try:
            await asyncio.wrap_future(self._start_loading(again=True))
        except (BgekitError, OSError) as error:
            raise Unready(f"{self.name} was not loaded again, the one before goes on: {error}", None) from error

    async def _acquired(self, used: int = 1) -> Loaded:
        """The model, kept in memory until it is released."""
        while True:
            with self._lock:
                if (loaded := self._loaded) is not None:
                    loaded.used += used
                    self._last_used = time.monotonic()
                    return loaded
            try:
                await asyncio.wrap_future(self._start_loading())
            except (BgekitError, OSError) as error:
                raise Unready(f"{self.name} cannot be loaded: {error}") from error

    @contextlib.asynccontextmanager
    async def _using(self) -> AsyncIterator[Loaded]:
        """The model, which is kept in memory meanwhile."""
        loaded = await self._acquired()
        try:
            yield loaded
        finally:
            with self._lock:
                loaded.used -= 1
                self._last_used = time.monotonic()

    def let_go(self, idle: float) -> None:
        """Free its memory if nobody has used it for so many seconds."""
        with self._lock:
            loaded = self._loaded
            unused = loaded is not None and not loaded.used and time.monotonic() - self._last_used >= idle
            if loaded is None or not unused or self._given is not None:
                return
            self._loaded = None
        loaded.close()
        del loaded
        from ..networks.cpu_inference import return_freed_memory

        return_freed_memory()
        logger.info("%s has not been used for %g s and is let go", self.name, idle)

    def close(self) -> None:
        """End its workers."""
        if self._loaded is not None:
            self._loaded.close()

    # Texts in, numbers out.

    async def embed(
        self, texts: Sequence[str] | Sequence[Sequence[int]], *, call: Trace, role: Alias | None = None,
        prompt_name: str | None = None, truncate: bool = True, side: Side = "right", max_length: int | None = None,
        normalize: bool | None = None, dimensions: int | None = None,
    ) -> Embedded:  # fmt: skip
        """Vectors of texts, those of `FlagModel.encode` to the bit.

        Args:
            texts: The texts, or the model's own token ids without special tokens.
            call: The request that they are for; it learns how many tokens they had, and which were cut.
            role: The alias that the model was named by; None encodes as `FlagModel.encode` does.
            prompt_name: A prompt of the card by its name, instead.
            truncate: Cut texts that are too long; if false, refuse them.
            side: Where to cut.
            max_length: Cut at fewer tokens than the model's own length.
            normalize: Scale to unit length, or not; by default as the card says.
            dimensions: Keep so many leading dimensions, scaled as before; those of `matryoshka_dims` or the full width.

        Raises:
            TooLarge: more texts or tokens than a request may have.
            Unprocessable: a text is too long and may not be cut, or an argument is impossible.
            NotFound: the card has no such prompt.
            Overloaded: the queue is full.
            Unready: the model cannot be had now.
            Internal: a vector has NaN, or workers died.
        """
        self._check_count(texts, call, embed=True)
        if not texts:
            return Embedded(np.empty((0, dimensions or self.dimension), np.float32), [], [])
        async with self._using() as loaded:
            card: Any = loaded.model.card
            wanted = card.normalize if normalize is None else normalize
            found, tokens = await self._computed_of(
                loaded, texts, "raw" if card.normalize and not wanted else "vector", call, role, prompt_name, truncate,
                side, max_length,
            )  # fmt: skip
        vectors = np.stack(found)
        if dimensions is not None and dimensions < vectors.shape[1]:
            vectors = vectors[:, :dimensions]
            if wanted:
                vectors = unit(vectors)
        elif wanted and not card.normalize:
            vectors = unit(vectors)
        return Embedded(np.ascontiguousarray(vectors), _sizes(tokens), tokens.truncated)

    async def outputs(
        self, texts: Sequence[str] | Sequence[Sequence[int]], output: Output, *, call: Trace, role: Alias | None = None,
        prompt_name: str | None = None, truncate: bool = True, side: Side = "right", max_length: int | None = None,
    ) -> Outputs:  # fmt: skip
        """What `BGEM3FlagModel.encode` gives beside vectors, and what the last layer gives for each token.

        Args:
            texts: At least one text, or the token ids of one.
            output: What is wanted.
            call: As in `embed`.
            role: As in `embed`.
            prompt_name: As in `embed`.
            truncate: As in `embed`.
            side: As in `embed`.
            max_length: As in `embed`.

        Raises:
            Unprocessable: the model has no head for it; and as in `embed`.
        """
        self._check_count(texts, call, embed=True)
        head = _HEADS.get(output)
        if head is not None and head not in self.heads:
            raise Unprocessable(
                f"{self.name} has no head for {head} outputs, as BGE-M3 has: it gives one vector for each text",
                failure="model_type",
            )
        async with self._using() as loaded:
            found, tokens = await self._computed_of(
                loaded, texts, output, call, role, prompt_name, truncate, side, max_length
            )
        return Outputs(found, _sizes(tokens), tokens.truncated)

    async def _computed_of(
        self, loaded: Loaded, texts: Sequence[str] | Sequence[Sequence[int]], output: Output, call: Trace,
        role: Alias | None, prompt_name: str | None, truncate: bool, side: Side, max_length: int | None,
    ) -> tuple[list[Result], Tokens]:  # fmt: skip
        """An output of each text of a request, and its tokens."""
        characters = sum(len(text) for text in texts if isinstance(text, str))
        call.characters += characters
        card: Any = loaded.model.card
        if prompt_name is not None and prompt_name not in card.prompts and prompt_name not in ALIASES:
            raise NotFound(f"{self.name} has no prompt {prompt_name!r}; it has {', '.join(card.prompts)}")
        prompt: Prompt = card.prompt(prompt_name or role or card.default_prompt)
        self._admit(loaded, characters)

        def tokenize() -> Tokens:
            tokenizer = loaded.text_tokenizer(prompt)
            length, left = min(max_length or card.max_length, card.max_length), side == "left"
            if isinstance(texts[0], str):
                valid = [repair(text)[0] for text in texts]  # type: ignore[arg-type]
                whole = length >= card.max_length and not left
                tokens = tokenizer(valid) if whole else tokenizer.cut(valid, length, left=left)
            else:
                self._check_ids(loaded, texts)  # type: ignore[arg-type]
                tokens = tokenizer.of_ids(texts, length, left=left)  # type: ignore[arg-type]
            if tokens.truncated and not truncate:
                row = tokens.truncated[0]
                had = tokenizer.count(valid[row] if isinstance(texts[0], str) else texts[row])
                raise self._too_long(row, had, length)
            return tokens

        # A query takes less time than the way to another thread and back, with Python's lock on it.
        plain = isinstance(texts[0], str) and side == "right" and (max_length or card.max_length) >= card.max_length
        inline = plain and characters <= _QUICK and len(texts) <= _QUICK_TEXTS and loaded.has_tokenizer(prompt)
        return await self._computed(loaded, tokenize, call, characters, output, inline=inline)

    async def score(
        self, pairs: Sequence[tuple[str, str]], *, call: Trace, truncate: bool = True, max_length: int | None = None,
        query_max_length: int | None = None,
    ) -> Scored:  # fmt: skip
        """Scores of pairs of a query and a passage, those of `FlagReranker.compute_score`; see `embed`."""
        self._check_count(pairs, call, embed=False)
        if not pairs:
            return Scored(np.empty(0, np.float32), [], [])
        characters = sum(len(query) + len(passage) for query, passage in pairs)
        call.characters += characters
        async with self._using() as loaded:
            self._admit(loaded, characters)

            def tokenize() -> Tokens:
                tokenizer = loaded.pair_tokenizer(max_length, query_max_length)
                tokens = tokenizer([(repair(query)[0], repair(passage)[0]) for query, passage in pairs])
                if tokens.truncated and not truncate:
                    length = max_length or loaded.model.card.max_length
                    raise self._too_long(tokens.truncated[0], None, length, "pair")
                return tokens

            found, tokens = await self._computed(loaded, tokenize, call, characters, "vector")
        return Scored(np.concatenate(found), _sizes(tokens), tokens.truncated)

    async def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, prompt_name: str | None = None
    ) -> list[Any]:
        """The `Encoding` of the library `tokenizers` of each text, nothing cut."""
        async with self._using() as loaded:
            prompt = self.card.prompt(prompt_name).prefix if isinstance(self.card, ModelCard) and prompt_name else ""
            backend = loaded.tokenizer
            valid = [prompt + repair(text)[0] for text in texts]
            return await self._off_loop(
                lambda: list(backend.encode_batch(valid, add_special_tokens=add_special_tokens))
            )

    async def decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """The texts of token ids."""
        async with self._using() as loaded:
            self._check_ids(loaded, ids)
            backend = loaded.tokenizer
            return await self._off_loop(
                lambda: list(backend.decode_batch([list(each) for each in ids], skip_special_tokens))
            )

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._tokenizing.submit(work))

    async def _computed(
        self, loaded: Loaded, tokenize: Callable[[], Tokens], call: Trace, characters: int, output: Output, *,
        inline: bool = False,
    ) -> tuple[list[Result], Tokens]:  # fmt: skip
        """A result for each input of a request, and its tokens; `inline` has this thread tokenise."""
        from ..inference.tokenization import merged

        start = time.perf_counter()

        def prepared() -> Tokens:
            return merged(tokenize())

        try:
            tokens = prepared() if inline else await self._off_loop(prepared)
        except ArgumentError as error:
            raise Unprocessable(str(error)) from error
        call.tokenized += time.perf_counter() - start
        size = sum(_sizes(tokens))
        if characters:
            loaded.characters_per_token += _LEARNT * (characters / size - loaded.characters_per_token)
        if size > self._settings.max_tokens:
            raise TooLarge(
                f"the request has {size:,} tokens, at most {self._settings.max_tokens:,} are taken at once "
                "(--max-tokens): send fewer texts at once"
            )
        if size > (most := loaded.most_tokens(output)):
            raise TooLarge(
                f"the request has {size:,} tokens, and vectors of at most {most:,} tokens are answered at once: send "
                "fewer texts at once"
            )
        job = self._scheduler.submit(loaded, tokens, output=output)
        try:
            found = await asyncio.wrap_future(job.future)
        finally:
            if not job.future.done() or job.future.cancelled():
                self._scheduler.drop(job)
        done = time.perf_counter()
        call.queued += job.begun - job.came
        call.computed += done - job.begun
        before = call.inputs
        results = found if tokens.places is None else [found[place] for place in tokens.places]
        call.inputs += len(results)
        call.tokens += size
        call.truncated += [before + row for row in tokens.truncated]
        return results, tokens

    def _admit(self, loaded: Loaded, characters: int) -> None:
        """Refuse early what would be refused once it is tokenised."""
        self._scheduler.admit(loaded, int(characters / (_MORE * loaded.characters_per_token)))

    def _check_count(self, inputs: Sequence[Any], call: Trace, *, embed: bool) -> None:
        call.model, call.embed = self.name, embed
        if embed != (self.kind == "embedder"):
            raise Unprocessable(f"{self.name} is {_a(self.kind)}", failure="model_type")
        most = self._settings.max_inputs
        if len(inputs) > most:
            raise TooLarge(
                f"the request has {len(inputs):,} inputs, at most {most:,} are taken at once (--max-inputs): send fewer"
            )

    def _check_ids(self, loaded: Loaded, ids: Sequence[Sequence[int]]) -> None:
        size = loaded.tokenizer.get_vocab_size()
        for row, own in enumerate(ids):
            for token in own:
                if not 0 <= token < size:
                    raise Unprocessable(f"input {row} has the token id {token}, but {self.name} knows 0 to {size - 1}")

    def _too_long(self, row: int, tokens: int | None, most: int, noun: str = "text") -> Unprocessable:
        has = "is longer" if tokens is None else f"has {tokens:,} tokens"
        return Unprocessable(
            f"the {noun} at index {row} {has}, {self.name} takes {most:,} and truncation is off: shorten it, or allow "
            "it to be cut"
        )


def _sizes(tokens: Tokens) -> list[int]:
    """Tokens of each input."""
    sizes = list(map(len, tokens.ids))
    return sizes if tokens.places is None else [sizes[place] for place in tokens.places]


def unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Vectors scaled to unit length as the network does it."""
    import torch

    scaled: npt.NDArray[np.float32] = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=-1).numpy()
    return scaled


def _beside(card: ModelCard | RerankerCard, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a checkpoint has beside what its card says: names of a reranker's classes, heads of an embedder.

    Classes that the config has no names for have those that transformers gives.
    """
    if isinstance(card, ModelCard):
        return (), stored_heads(folder)
    named = read_config(folder).get("id2label")
    given = named if isinstance(named, dict) else {}
    return tuple(str(given.get(str(place), f"LABEL_{place}")) for place in range(card.labels)), ()


def _a(kind: str) -> str:
    return f"a{'n' if kind == 'embedder' else ''} {kind}"


@dataclass(frozen=True)
class Listed:
    """A name that requests may use.

    Attributes:
        name: The name, with its alias.
        model: Whose it is.
        alias: None for the bare name.
    """

    name: str
    model: Served
    alias: Alias | None


class Models:
    """All models of a server, in the order in which they were named."""

    def __init__(
        self, given: Mapping[str, Any], settings: Settings, scheduler: Scheduler,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        """Read what the files of all models say.

        Args:
            given: Name -> folder, id on the hub, `packaged:NAME`, or a model that is there.
            settings: The server's.
            scheduler: Its queue.
            options: Name -> settings of that model, see `OPTIONS`.

        Raises:
            BgekitError: a model cannot be used.
        """
        if not given:
            raise UsageError("name at least one model to serve")
        self._tokenizing = ThreadPoolExecutor(2, "bgekit-tokenise")
        self._served = {
            name: Served(name, path, (options or {}).get(name, {}), settings, scheduler, self._tokenizing)
            for name, path in given.items()
        }
        self._lazy = settings.lazy
        #: Other names: full ids, and what a full id ends with.
        self._others: dict[str, Served] = {}
        for served in self:
            self._others.setdefault(served.id, served)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    def find(
        self, name: str | None, kind: Kind | None = None, *, call: Trace | None = None
    ) -> tuple[Served, Alias | None]:
        """A model by what a request calls it, and the alias in that.

        Args:
            name: The name, the full id, or either with `:query` or `:document`; None or "" is the first of its kind.
            kind: What the route needs, None if either will do.
            call: The request; a name in front of its path is believed before `name`.

        Raises:
            NotFound: there is no such model; the message names those that there are.
            Unprocessable: it is of the other kind.
        """
        if call is not None and call.name:
            served, alias = self._named(call.name)
            if name and alias is None:
                try:  # The path says which model, and a field with the same model may add the role.
                    also, role = self._named(name)
                    alias = role if also is served else None
                except NotFound:
                    pass
        elif name:
            served, alias = self._named(name)
        else:
            first = next(iter(self)) if kind is None else self.first(kind)
            if first is None:
                raise NotFound(f"no {kind} is served here; there is {self._names()}", failure="model_type")
            served, alias = first, None
        if kind is not None and served.kind != kind:
            raise Unprocessable(
                f"{served.name} is {_a(served.kind)}, and this needs {_a(kind)}", param="model", failure="model_type"
            )
        if call is not None:
            call.model = served.name
        return served, alias

    def _named(self, name: str) -> tuple[Served, Alias | None]:
        if (served := self._served.get(name) or self._others.get(name)) is not None:
            return served, None
        bare, _, alias = name.rpartition(":")
        for each in ALIASES:
            if each == alias and (served := self._served.get(bare) or self._others.get(bare)) is not None:
                if served.kind == "reranker":
                    break
                return served, each
        raise NotFound(f"there is no model {name!r:.200} here; there is {self._names()}", param="model")

    def _names(self) -> str:
        return ", ".join(self._served)

    def first(self, kind: Kind) -> Served | None:
        """The first model of a kind."""
        return next((served for served in self if served.kind == kind), None)

    def listed(self) -> list[Listed]:
        """All names: of embedders the bare one and both aliases, of rerankers the bare one."""
        found = []
        for served in self:
            found.append(Listed(served.name, served, None))
            if served.kind == "embedder":
                found += [Listed(f"{served.name}:{alias}", served, alias) for alias in ALIASES]
        return found

    def load(self) -> None:
        """Load all of them, one after the other; lazy ones are left as they are.

        Raises:
            BgekitError: one cannot be loaded.
        """
        for served in () if self._lazy else self:
            served.load()

    def has(self, name: str) -> bool:
        """Whether a part of a path is a model's name, an alias included."""
        bare, _, alias = name.partition(":")
        return bare in self._served and (not alias or alias in ALIASES)

    @property
    def loading(self) -> bool:
        """Whether a model is being loaded just now."""
        return any(served.state == "loading" for served in self)

    @property
    def not_ready(self) -> str:
        """Why a request may have to wait for a model to be loaded, "" if none is."""
        if self._lazy:
            return ""
        waiting = [served for served in self if served.model is None]
        failed = [f"{served.name} cannot be loaded: {served.error}" for served in waiting if served.error]
        if failed:
            return failed[0]
        loading = [served.name for served in waiting if served.state == "loading" or not served.was_loaded]
        return f"{', '.join(loading)} is being loaded" if loading else ""

    def speed(self, streams: int) -> float:
        """Tokens a second of the first model in memory."""
        for served in self:
            if served.loaded is not None:
                return streams / served.loaded.seconds_per_token
        return 0.0

    def let_go(self, idle: float) -> None:
        """Free the memory of models that nobody has used for so many seconds."""
        for served in self:
            served.let_go(idle)

    def close(self) -> None:
        """End all workers."""
        for served in self:
            served.close()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
