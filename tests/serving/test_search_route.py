"""An index behind HTTP: what is found is what `SearchIndex.ask` finds, of one state, without hidden columns."""

import json
import shutil
import time

import httpx
import pytest

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from bgekit import FlagModel, FlagReranker
from bgekit.errors import BgekitError
from bgekit.search import SearchIndex
from bgekit.serving import create_app
from m3_models import make_m3
from serving.documents import DOCUMENTS
from serving.running_server import running


@pytest.fixture(scope="module")
def folder(bge_name, index_of):
    return index_of(bge_name)


@pytest.fixture(scope="module")
def client(bge_name, tiny_bert, tiny_reranker, folder):
    models = {"other": tiny_bert, "tiny": bge_name, "judge": tiny_reranker}
    app = create_app(models, index=folder, hidden=("secret",))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def ask(client):
    def answer(body, status=200):
        response = client.post("/v1/search", json=body)
        assert response.status_code == status, response.text
        return response.json() if status == 200 else response.json()["error"]

    return answer


def shown(hits):
    """Hits as they are answered."""
    found = [hit.to_dict() for hit in hits]
    for each in found:
        each["metadata"] = {name: value for name, value in each["metadata"].items() if name != "secret"}
    return found


def test_a_name_in_front_must_be_that_of_the_index(client, ask):
    plain = ask({"query": "cat"})
    for name in ("tiny", "tiny:query", "tiny:document"):
        assert client.post(f"/{name}/v1/search", json={"query": "cat"}).json() == plain
    for name in ("judge", "other"):
        answer = client.post(f"/{name}/v1/search", json={"query": "cat"})
        assert answer.status_code == 422, answer.text


def test_found_is_what_the_index_finds(ask, bge_name, folder):
    index, model = SearchIndex.load(folder), FlagModel(bge_name)
    queries = ["where is the cat?", "rivers"]
    for options in ({}, {"where": "year >= 2021 and lang = 'en'"}, {"where": "tags = 'a'", "top_k": 1}):
        expected = index.ask(model, queries, **{"top_k": 10, **options})
        answer = ask({"query": queries, **options})
        assert answer["results"] == [shown(hits) for hits in expected]
    [one] = ask({"query": queries[0], "mode": "dense", "where": None, "rerank": None, "keep": None})["results"]
    assert one == shown(index.ask(model, queries[:1])[0]) and len(one) == len(DOCUMENTS)


def test_reranked(ask, bge_name, folder, tiny_reranker):
    index, model = SearchIndex.load(folder), FlagModel(bge_name)
    expected = index.ask(model, ["cat"], 2, reranker=FlagReranker(tiny_reranker, normalize=True), rerank_top_k=3)[0]
    found = ask({"query": "cat", "top_k": 2, "rerank": {"model": "judge", "top_k": 3}})["results"][0]
    assert [each["id"] for each in found] == [hit.id for hit in expected]
    assert [each["score"] for each in found] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert [each["retrieval_score"] for each in found] == [hit.retrieval_score for hit in expected]
    assert len(ask({"query": "cat", "rerank": "judge"})["results"][0]) == 4
    assert "judge" in ask({"query": "cat", "rerank": "nobody"}, 404)["message"]


def test_columns(ask, client):
    found = ask({"query": "cat", "keep": ["year"], "top_k": 1})["results"][0][0]
    assert list(found["metadata"]) == ["year"]
    assert "metadata" not in ask({"query": "cat", "keep": [], "top_k": 1})["results"][0][0]
    for hidden in ({"keep": ["secret"]}, {"where": "secret = 's'"}, {"where": "nothing = 1"}):
        message = ask({"query": "cat", **hidden}, 422)["message"]
        assert "there is no column" in message and "lang, year, tags" in message
    info = client.get("/v1/search/info").json()
    assert info["rows"] == len(DOCUMENTS) and info["state"] == ask({"query": "cat"})["state"]
    assert [each["name"] for each in info["columns"]] == ["lang", "year", "tags"]
    assert info["columns"][1]["type"] == "int64" and info["model"] == "bge-small-en-v1.5"


@pytest.mark.parametrize(
    ("where", "position"),
    [("year >", [6, 6]), ("year ! 3", [5, 6]), ("yaer = 3", [0, 4]), ("lang = 3", [7, 8]), ("", [0, 0])],
)
def test_conditions_that_cannot_be_used(where, position, ask):
    error = ask({"query": "cat", "where": where}, 422)
    assert error["param"] == "where" and error["position"] == position and error["message"].startswith("`where`: ")


def test_values_that_cannot_be(ask):
    for wrong, said in (
        ({"mode": "sparse"}, "dense, lexical, bm25"), ({"mode": "bm25"}, "--parts bm25"),
        ({"mode": "lexical"}, "--parts lexical"), ({"mode": "multi-vector"}, "tiny has none"), ({"top_k": 0}, "top_k"),
        ({"rerank": {"model": "judge", "top_k": -1}}, "rerank"), ({"query": None}, "query"),
        ({"top_k": 10**9}, "10,000"),
    ):  # fmt: skip
        assert said in ask({"query": "cat", **wrong}, 422)["message"]
    assert "empty" in ask({"query": []}, 400)["message"]


def test_every_mode_that_the_index_and_its_model_have(bge_name, tmp_path, index_of):
    m3 = make_m3(tmp_path / "bge-m3", [each["text"] for each in DOCUMENTS], vocabulary=128)
    queries = ["the cat sat", "river"]
    for model, parts, modes in (
        (bge_name, ["bm25"], ["dense", "bm25", "hybrid"]),
        (m3, ["bm25", "lexical"], ["dense", "lexical", "bm25", "multi-vector", "hybrid"]),
    ):  # fmt: skip
        folder = tmp_path / model.name / "index"
        folder.mkdir(parents=True, exist_ok=True)
        made = index_of(model, folder=folder, parts=parts)
        index, own = SearchIndex.load(made), FlagModel(model)
        with running(create_app({"own": model}, index=made)) as address, httpx.Client(timeout=60) as client:
            assert client.get(f"{address}/v1/search/info").json()["modes"] == modes
            for mode in modes:
                for options in ({}, {"where": "year >= 2021"}):
                    answer = client.post(
                        f"{address}/v1/search", json={"query": queries, "mode": mode, **options}
                    ).json()
                    expected = index.ask(own, queries, mode=mode, **options)
                    assert [[hit["id"] for hit in hits] for hits in answer["results"]] == [
                        [hit.id for hit in hits] for hits in expected
                    ]
                    assert [hit["score"] for hit in answer["results"][0]] == pytest.approx(
                        [hit.score for hit in expected[0]], abs=1e-6
                    )


def test_modes_are_told_once_the_model_is_there(tmp_path, index_of, monkeypatch):
    m3 = make_m3(tmp_path / "bge-m3", [each["text"] for each in DOCUMENTS], vocabulary=128)
    app = create_app({"own": m3}, index=index_of(m3, folder=tmp_path, parts=["lexical"]))
    models, load = app.app.state.server.models, app.app.state.server.models.load

    def slowly():
        time.sleep(0.5)
        load()

    monkeypatch.setattr(models, "load", slowly)
    with TestClient(app) as client:
        modes = client.get("/v1/search/info").json()["modes"]
    assert modes == ["dense", "lexical", "multi-vector", "hybrid"]


def test_a_new_state_is_seen_and_a_damaged_one_is_not_taken_up(bge_name, index_of, tmp_path, caplog):
    folder = index_of(bge_name, DOCUMENTS[:2], tmp_path)
    with TestClient(create_app({"tiny": bge_name}, index=folder), raise_server_exceptions=False) as client:

        def found():
            answer = client.post("/v1/search", json={"query": "cat"}).json()
            return answer["state"], sorted(each["id"] for each in answer["results"][0])

        before, ids = found()
        assert ids == ["d0", "d1"]
        new = {"query": "cat", "where": "added = 1", "keep": ["added"]}
        assert "no column 'added'" in client.post("/v1/search", json=new).json()["message"]
        index_of(bge_name, [{**each, "added": 1} for each in DOCUMENTS[:3]], tmp_path)
        [hits] = client.post("/v1/search", json=new).json()["results"]
        assert sorted(each["id"] for each in hits) == ["d0", "d1", "d2"]
        index_of(bge_name, DOCUMENTS, tmp_path)
        after, ids = found()
        assert ids == ["d0", "d1", "d2", "d3"] and after != before
        assert client.get("/v1/search/info").json()["rows"] == 4
        (folder / "index.json").write_text("{")
        assert found() == (after, ids)
        assert "is not taken up" in caplog.text


def test_an_index_of_another_model_is_no_start(bge_name, make_model, index_of, tmp_path):
    other = make_model(name="other", seed=5)
    folder = index_of(bge_name)
    with TestClient(create_app({"other": other}, index=folder), raise_server_exceptions=False) as client:
        for _ in range(500):  # As long as it is being loaded, that is the reason.
            assert client.get("/health").status_code == 503
            if "is not served" in (reason := client.get("/ready").json()["reason"]):
                break
            time.sleep(0.02)
        assert "made with" in reason
        assert client.post("/v1/search", json={"query": "a"}).status_code == 503
    shutil.rmtree(tmp_path)
    with pytest.raises(BgekitError, match=r"neither|does not exist"):
        create_app({"tiny": bge_name}, index=tmp_path)


def test_without_an_index(bge_name):
    with TestClient(create_app({"tiny": bge_name})) as client:
        assert "--index" in client.post("/v1/search", json={"query": "a"}).json()["error"]["message"]
        assert client.get("/v1/search/info").status_code == 404


def test_no_key_no_answer(bge_name, folder):
    with TestClient(create_app({"tiny": bge_name}, index=folder, api_keys=("secret-key",))) as client:
        assert client.post("/v1/search", json={"query": "a"}).status_code == 401
        assert client.get("/v1/search/info").status_code == 401
        assert client.get("/ui/state").status_code == 401
        assert client.get("/ui").status_code == 200 and "tiny" not in client.get("/ui").text
        kept = {"authorization": "Bearer secret-key"}
        assert client.post("/v1/search", json={"query": "a"}, headers=kept).status_code == 200
        assert json.loads(client.get("/ui/state", headers=kept).text)["index"]["rows"] == 4
