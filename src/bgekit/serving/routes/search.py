"""An index of `bge search` behind HTTP: `/v1/search` and `/v1/search/info`.

Queries are encoded in the queue of the server like all others; the index is read by one thread. Before each search it
takes up what the folder holds by then, and a request is answered by one state of it.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import logging
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from starlette.responses import Response
from starlette.routing import Route

from ...errors import ArgumentError, OutputError
from ...inference.pipeline import Embeddings, Encoded, Origin
from ...inference.reranker import sigmoid
from ...models.sentence_transformers_files import shown_name
from ...search.copied import local_index
from ...search.index import Hit, SearchIndex, reranked
from ...search.modes import MODES, Mode
from ...search.storage import FACTS
from ...search.where import Where, WhereError
from ..bodies import as_json, decode, inputs_of
from ..calls import Call, endpoint
from ..errors import Internal, NotFound, ServingError, Unprocessable, Unready
from ..instructions import without_instruction
from ..models import Served
from ..server import Server
from .embedding import Named, embed, outputs
from .openai import problem as openai_problem

if TYPE_CHECKING:
    from ...inference.model import Embedder
    from ...models.head_files import Output

logger = logging.getLogger(__name__)
#: Hits of a query, at most.
_MOST: Final = 10_000
#: Hits of a query that a reranker reads unless told.
_RERANKED: Final = 100


class Reranked(msgspec.Struct, kw_only=True):
    """How hits are reranked."""

    model: str
    top_k: int | None = None


class Search(msgspec.Struct, kw_only=True):
    """Body of `/v1/search`.

    Attributes:
        query: A query or several.
        top_k: Hits wanted of each, 10 unless told.
        rerank: Name of a reranker, or that with the number of hits that it reads (100 unless told).
        where: Condition on metadata, such as `year >= 2020 and lang = 'en'`.
        keep: Columns of metadata that are answered; all unless told.
        mode: What queries and texts are compared by: `dense` unless told, `bm25`, `lexical`, `multi-vector` or
            `hybrid`, where the index and its model have what that takes.
        raw_scores: Whether a reranker's scores are as the model gives them, not between 0 and 1.
    """

    query: str | list[str]
    top_k: int | None = None
    rerank: str | Reranked | None = None
    where: str | None = None
    keep: list[str] | None = None
    mode: str | None = None
    raw_scores: bool | None = None


class Found(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A hit of the answer."""

    rank: int
    id: str
    score: float
    text: str | None
    passage: int | None = None
    retrieval_score: float | None = None
    metadata: dict[str, Any] | None = None


class SearchResults(msgspec.Struct, kw_only=True):
    """Answer of `/v1/search`: the hits of each query, best first, and the state of the index that they are from."""

    results: list[list[Found]]
    state: str


class Column(msgspec.Struct, kw_only=True):
    """A column of metadata."""

    name: str
    type: str


class Info(msgspec.Struct, kw_only=True):
    """Answer of `/v1/search/info`."""

    state: str
    rows: int
    dimension: int
    model: str
    index_type: str
    passages: bool
    modes: list[str]
    columns: list[Column]


class BadCondition(Unprocessable):
    """A `where` that cannot be used.

    Attributes:
        position: First character of what is wrong, and the one behind it.
    """

    def __init__(self, message: str, position: tuple[int, int]) -> None:
        super().__init__(message, param="where")
        self.position = position


def problem(error: ServingError) -> Response:
    """An error in OpenAI's form, with the position of what is wrong in a condition."""
    response = openai_problem(error)
    if isinstance(error, BadCondition):
        said = msgspec.json.decode(response.body)
        said["error"]["position"] = list(error.position)
        return as_json(said, error.status)
    return response


class OpenIndex:
    """The index of a server, read by one thread.

    Attributes:
        served: The model that it was made with.
    """

    def __init__(self, place: str, hidden: Sequence[str]) -> None:
        """Open the index in a folder; one at a URL is copied, and stays as it is.

        Raises:
            OutputError: the folder is none.
        """
        self._folder, self._hidden = local_index(place), frozenset(hidden)
        self._index = SearchIndex.load(self._folder)
        self._stamp = self._stamp_now()
        self._state = self._digest()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self.served: Served | None = None
        self._checked: weakref.ref[Embedder] | None = None

    async def refresh(self) -> None:
        """Go on with what the folder holds now, so that conditions are checked against that."""
        if self._stamp_now() != self._stamp:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._refresh)

    async def search(
        self, queries: list[str], computed: Encoded, top_k: int, where: str | None, mode: Mode
    ) -> tuple[list[list[Hit]], str]:
        """Hits of each query, and the state that they are from.

        Args:
            queries: The queries.
            computed: What the model makes of them, of that what the mode takes.
            top_k: Hits wanted of each.
            where: Condition on metadata.
            mode: What is compared.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._search, queries, computed, top_k, where, mode)

    def outputs_of(self, mode: str) -> tuple[Output, ...]:
        """What a model computes of queries for a mode.

        Raises:
            Unprocessable: there is no such mode, or the index or its model lacks what it takes.
        """
        try:
            outputs = self._index.outputs_of(mode)  # type: ignore[arg-type]
        except ArgumentError as error:
            raise Unprocessable(f"`mode`: {error}", param="mode") from error
        there = ("dense", *(() if self.served is None else self.served.heads))
        lacking = [output for output in outputs if output not in there]
        if lacking:
            name = "the model" if self.served is None else self.served.name
            raise Unprocessable(
                f"`mode`: {mode!r} takes a head for {lacking[0]} outputs, as BGE-M3 has, and {name} has none",
                param="mode",
            )
        return outputs

    async def info(self) -> Info:
        """What the index is now."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._info)

    @property
    def model_name(self) -> str:
        """Name of the model that it was made with."""
        return self._index.facts.model_name

    def made_by(self, model: Embedder) -> bool:
        """Whether it was made by the very model, number format and instructions included."""
        return model.fingerprint == self._index.facts.model_fingerprint

    def check_model(self, model: Embedder) -> None:
        """See to it that the index was made with a model.

        Raises:
            BgekitError: it was made with another.
        """
        self._index.check_model(model)
        self._checked = weakref.ref(model)

    def check(self, where: str | None) -> None:
        """See to it that a condition can be used, before anything is computed.

        Raises:
            BadCondition: it cannot.
        """
        if where is None:
            return
        try:
            condition = Where(where)
        except WhereError as error:
            raise BadCondition(f"`where`: {error.reason}", (error.start, error.end)) from error
        shown = self._shown()
        for name in condition.columns:
            if name not in shown:
                start = max(where.find(name), 0)
                there = ", ".join(shown) or "none"
                message = f"`where`: there is no column {name!r:.80}; there are {there}"
                raise BadCondition(message, (start, start + len(name)))

    def check_kept(self, names: Sequence[str]) -> None:
        """See to it that columns are there.

        Raises:
            Unprocessable: one is not.
        """
        shown = self._shown()
        for name in names:
            if name not in shown:
                there = ", ".join(shown) or "none"
                raise Unprocessable(f"`keep`: there is no column {name!r:.80}; there are {there}", param="keep")

    def answer(self, hit: Hit, keep: Sequence[str] | None) -> Found:
        """A hit as it is answered."""
        content = hit.to_dict()
        metadata = {
            name: value for name, value in content.pop("metadata", {}).items()
            if name not in self._hidden and (keep is None or name in keep)
        }  # fmt: skip
        return Found(**content, metadata=metadata or None)

    def _search(
        self, queries: list[str], computed: Encoded, top_k: int, where: str | None, mode: Mode
    ) -> tuple[list[list[Hit]], str]:
        self._refresh()
        self._check_loaded()
        index = self._index
        try:
            if mode == "dense":
                return index.search(self._known(computed.vectors), top_k, where=where), self._state
            model: Any = None if self.served is None else self.served.model
            asked: Any = None if mode == "bm25" else _Computed(model, computed)
            return index.ask(asked, queries, top_k, mode=mode, where=where), self._state
        except WhereError as error:
            raise BadCondition(f"`where`: {error.reason}", (error.start, error.end)) from error
        except ArgumentError as error:
            raise Unprocessable(str(error)) from error
        except OutputError as error:
            logger.exception("the index in %s cannot be read", self._folder)
            raise Internal("the index cannot be read; the server's log says why") from error

    def _check_loaded(self) -> None:
        """See to it that a model that was loaded again since is still that of the index.

        Raises:
            Unready: it is not.
        """
        model = None if self.served is None else self.served.model
        if model is None or (self._checked is not None and self._checked() is model):
            return
        try:
            self.check_model(model)
        except ArgumentError as error:
            raise Unready(f"the model was loaded again, and the index was made with another: {error}", None) from error

    def _known(self, vectors: npt.NDArray[np.float32]) -> Embeddings:
        """Vectors of the index's model, which was checked when the index was opened."""
        return Embeddings.of(vectors, (), (), Origin.known(self._index.facts.model_fingerprint))

    def _info(self) -> Info:
        self._refresh()
        index = self._index
        types = {} if index.metadata is None else {each.name: str(each.type) for each in index.metadata.schema}
        columns = [Column(name=name, type=kind) for name, kind in types.items() if name not in self._hidden]
        return Info(
            state=self._state, rows=len(index), dimension=index.dimension, model=shown_name(index.facts.model_name),
            index_type=index.facts.index_type, passages=index.facts.chunked, modes=self._modes(), columns=columns,
        )  # fmt: skip

    def _modes(self) -> list[str]:
        """The modes that can be asked for."""
        found: list[str] = []
        for mode in MODES:
            try:
                self.outputs_of(mode)
            except Unprocessable:
                continue
            found.append(mode)
        return found

    def _shown(self) -> list[str]:
        table = self._index.metadata
        return [] if table is None else [name for name in table.column_names if name not in self._hidden]

    def _refresh(self) -> None:
        """Go on with what the folder holds now; where that cannot be used, with what there was."""
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        before = self._index
        try:
            index = copy.copy(before)
            if hasattr(index, "refresh"):
                index.refresh()
            else:
                index = SearchIndex.load(self._folder)
            if index.facts.model_fingerprint != before.facts.model_fingerprint:
                raise OutputError(f"the index is of another model now ({index.facts.model_name})")
        except OutputError as error:
            logger.warning("the index in %s has changed and is not taken up: %s", self._folder, error)
        else:
            self._index, self._state = index, self._digest()
        self._stamp = stamp

    def _stamp_now(self) -> tuple[int, int, int] | None:
        """What tells that the index has changed: its facts are written last."""
        try:
            status = (self._folder / FACTS).stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _digest(self) -> str:
        try:
            return hashlib.sha256((self._folder / FACTS).read_bytes()).hexdigest()[:16]
        except FileNotFoundError:  # A folder of encoded shards, which never changes.
            return self._index.facts.model_fingerprint[:16]


async def search(call: Call) -> Response:
    """Answer `/v1/search`."""
    index = _index(call)
    body = decode(call, Search)
    queries, call.batch = inputs_of(body.query, "query")
    await index.refresh()
    mode: Any = body.mode or "dense"
    outputs_wanted = index.outputs_of(mode)
    top_k = _checked_count("top_k", body.top_k, 10)
    index.check(body.where)
    index.check_kept(body.keep or ())
    rerank = Reranked(model=body.rerank) if isinstance(body.rerank, str) else body.rerank
    reranker, wanted = None, top_k
    if rerank is not None:
        reranker, _ = call.server.models.find(rerank.model, "reranker")
        wanted = max(top_k, _checked_count("rerank.top_k", rerank.top_k, _RERANKED))
    its_model = _its_model(call, index)
    queries = without_instruction(queries, its_model.card.prompt("query").prefix)  # type: ignore[union-attr]
    computed = await _computed(call, (its_model, "query"), queries, outputs_wanted)
    hits, state = await index.search(queries, computed, wanted, body.where, mode)
    if reranker is not None:
        hits = await _reranked(call, reranker, queries, hits, top_k, raw=bool(body.raw_scores))
    answers = [[index.answer(hit, body.keep) for hit in each] for each in hits]
    return as_json(SearchResults(results=answers, state=state))


class _Computed:
    """The model of the index for one search: what it makes of the queries is there already."""

    def __init__(self, model: Any, computed: Encoded) -> None:
        self._model, self._computed = model, computed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_queries(self, queries: list[str], **options: Any) -> npt.NDArray[np.float32]:
        """The vectors."""
        return self._computed.vectors

    def encode_outputs(self, texts: list[str], outputs: Sequence[Output], *, role: str, **options: Any) -> Encoded:
        """The outputs of the queries; of texts of the index, those that the model computes now."""
        if role == "query":
            return self._computed
        return self._model.encode_outputs(texts, outputs, role=role, **options)  # type: ignore[no-any-return]


async def _computed(call: Call, model: Named, queries: list[str], wanted: Sequence[Output]) -> Encoded:
    """What a model makes of queries."""
    found = Encoded(np.empty((len(queries), 0), np.float32))
    for output in wanted:
        call.truncated.clear()  # Each output has the same texts.
        if output == "dense":
            _, embedded = await embed(call, model, queries)
            found.vectors = embedded.vectors
        else:
            found.ragged[output] = (await outputs(call, model, queries, output)).values
    return found


def _its_model(call: Call, index: OpenIndex) -> Served:
    """The model of the index; a name in front of the path must be its name."""
    if index.served is None:
        raise Unready("the index is being opened")
    if call.name is not None:
        named, _ = call.server.models.find(None, "embedder", call=call)
        if named is not index.served:
            raise Unprocessable(f"the index was made with {index.served.name}: it cannot be searched with {named.name}")
    return index.served


async def _reranked(
    call: Call, reranker: Served, queries: list[str], hits: list[list[Hit]], top_k: int, *, raw: bool
) -> list[list[Hit]]:
    pairs = [(query, hit.text or "") for query, found in zip(queries, hits, strict=True) for hit in found]
    if not pairs:
        return hits
    if any(hit.text is None for found in hits for hit in found):
        raise Unprocessable("the index keeps no texts that a reranker could read: leave out `rerank`", param="rerank")
    queries_cut = list(call.truncated)
    scored = await reranker.score(pairs, call=call)
    call.truncated = (
        queries_cut  # What the client can name: passages that a reranker read in part are none of its texts.
    )
    ordered = reranked(_Given(scored.scores.tolist()), queries, hits, top_k)
    if raw:
        return ordered
    return [[replace(hit, score=float(sigmoid(hit.score))) for hit in found] for found in ordered]


class _Given:
    """Scores that are computed already, as what `reranked` takes."""

    def __init__(self, scores: Sequence[float]) -> None:
        self._scores = scores

    def compute_score(self, sentence_pairs: list[tuple[str, str]]) -> Sequence[float]:
        """The scores."""
        return self._scores


async def info(call: Call) -> Response:
    """Answer `/v1/search/info`; which modes there are depends on the model, which is waited for."""
    index = _index(call)
    await call.server.prepare()
    return as_json(await index.info())


def _index(call: Call) -> OpenIndex:
    index = call.server.state.get("index")
    if index is None:
        raise NotFound("no index is served: start the server with --index DIR")
    return index  # type: ignore[no-any-return]


def _checked_count(name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if not 1 <= value <= _MOST:
        raise Unprocessable(f"`{name}`: expected a number from 1 to {_MOST:,}, got {value}", param=name.split(".")[0])
    return value


def routes(server: Server) -> list[Route]:
    """The routes of searching; the index is opened."""
    if server.index is not None and "index" not in server.state:
        server.state["index"] = OpenIndex(server.index, server.settings.hidden)
    return [
        Route("/v1/search", endpoint(search, problem=problem), methods=["POST"]),
        Route("/v1/search/info", endpoint(info, problem=problem, work=False), methods=["GET"]),
    ]
