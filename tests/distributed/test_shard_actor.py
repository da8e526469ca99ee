"""What a cluster writes, byte by byte, of all kinds of input, and what it refuses; a stand-in plays Ray."""

import gzip
import json
import logging
import random
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from bgekit import FlagModel, FlagReranker
from bgekit.data import Record, read_records
from bgekit.distributed import ModelRecipe, RayCluster, RemoteTeacher, encode_on_cluster
from bgekit.distributed import cluster as clusters
from bgekit.distributed import encoding as encodings
from bgekit.distributed.encoding import ShardReader
from bgekit.errors import ArgumentError, DataError, NumericalError, OutputError
from bgekit.files import OutputFolder
from bgekit.inference import Chunks, encode_to_shards
from bgekit.inference.shards import ShardPlanner
from bgekit.mining import Choice, Mining, dense, mine, score
from conftest import WORDS
from distributed.clusters import contents, write_lines
from distributed.fake_ray import FakeRay, RayError


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Actors are objects of this process: what they set for theirs is set back."""
    for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["ray"].is_initialized = lambda: False
    sys.modules["ray.util.scheduling_strategies"].NodeAffinitySchedulingStrategy = lambda *_, **__: None
    monkeypatch.setattr(clusters, "_LOOK", 0.0)
    monkeypatch.setattr(encodings, "_PATIENCE", 0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    logger = logging.getLogger("bgekit")
    level = logger.level
    yield
    logger.setLevel(level)


def cluster_of(nodes="ab", hurt=lambda *_: None):
    cluster = RayCluster("auto")
    cluster.ray = FakeRay(nodes, hurt)
    return cluster


def rows(count=90, seed=0):
    draw = random.Random(seed)
    return [{"id": f"{n:04}", "text": " ".join(draw.choices(WORDS, k=draw.randint(2, 30)))} for n in range(count)]


def as_lines(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def zipped(path):
    with gzip.open(path.with_suffix(".jsonl.gz"), "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows()))
    return path.with_suffix(".jsonl.gz")


def as_array(path):
    path.with_suffix(".json").write_text(json.dumps(rows(), indent=1))
    return path.with_suffix(".json")


def as_csv(path):
    lines = ["id,text,year", *(f'{row["id"]},"{row["text"]},\nand on",{1990 + n}' for n, row in enumerate(rows()))]
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n")
    return path.with_suffix(".csv")


def as_text(path):
    path.with_suffix(".txt").write_text("\ufeff" + "".join(f"{row['text']} é 文\r\n" for row in rows()), newline="")
    return path.with_suffix(".txt")


def as_parquet(path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows()), path.with_suffix(".parquet"), row_group_size=17)
    return path.with_suffix(".parquet")


FORMS = {"jsonl": as_lines, "gz": zipped, "array": as_array, "csv": as_csv, "txt": as_text, "parquet": as_parquet}


@pytest.mark.parametrize("form", FORMS)
def test_a_cluster_writes_the_bytes_of_one_process(tiny_bert, tmp_path, form):
    file = FORMS[form](tmp_path / "corpus.jsonl")
    options = {"keep": "year"} if form == "csv" else {}
    encode_to_shards(FlagModel(tiny_bert), read_records(file, **options), tmp_path / "one", shard_size=8)
    encode_on_cluster(
        cluster_of(), ModelRecipe(str(tiny_bert)), read_records(file, **options), tmp_path / "many", shard_size=8
    )
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.parametrize("form", ["jsonl", "gz"])
def test_passages_of_documents_are_cut_where_one_process_cuts_them(tiny_bert, tmp_path, form):
    file, how = FORMS[form](tmp_path / "corpus.jsonl"), {"shard_size": 8, "chunks": Chunks(8, 2), "store_texts": True}
    encode_to_shards(FlagModel(tiny_bert), read_records(file), tmp_path / "one", **how)
    encode_on_cluster(cluster_of(), ModelRecipe(str(tiny_bert)), read_records(file), tmp_path / "many", **how)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_records_of_no_file_are_encoded_too(tiny_bert, tmp_path):
    records = [Record(f"{n}\ud800", row["text"]) for n, row in enumerate(rows(30))]
    model = FlagModel(tiny_bert)
    encode_to_shards(model, records, tmp_path / "one", shard_size=8)
    encode_on_cluster(cluster_of(), model, iter(records), tmp_path / "many", shard_size=8)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_run_goes_on_with_what_is_finished_after_actors_died(tiny_bert, tmp_path):
    file, recipe = as_lines(tmp_path / "corpus.jsonl"), ModelRecipe(str(tiny_bert))
    encode_to_shards(FlagModel(tiny_bert), read_records(file), tmp_path / "one", shard_size=8)
    done = []

    def hurt(actor, method, argument):
        if method == "work":
            done.append(argument)
            if len(done) in (3, 6):
                raise RayError("The worker was killed")
            if len(done) == 9:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_on_cluster(cluster_of(hurt=hurt), recipe, read_records(file), tmp_path / "many", shard_size=8)
    report = encode_on_cluster(cluster_of("abc"), recipe, read_records(file), tmp_path / "many", shard_size=8)
    assert report.kept >= 8 * 6
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_shards_and_groups_that_are_handed_back_are_done_by_others(tiny_bert, tiny_reranker, tmp_path):
    file, rows_to_score = as_lines(tmp_path / "corpus.jsonl"), training(tmp_path / "train.jsonl")
    calls = []

    def hurt(actor, method, argument):
        calls.append(method)
        if calls.count("work") in (1, 4):
            actor.object.stop()

    encode_to_shards(FlagModel(tiny_bert), read_records(file), tmp_path / "one", shard_size=8)
    cluster = cluster_of("abc", hurt)
    encode_on_cluster(cluster, ModelRecipe(str(tiny_bert)), read_records(file), tmp_path / "many", shard_size=8)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    score(FlagReranker(tiny_reranker), str(rows_to_score), str(tmp_path / "one.jsonl"))
    calls.clear()
    cluster = cluster_of("ab", hurt)
    with RemoteTeacher(cluster, ModelRecipe(str(tiny_reranker))) as teacher:
        score(teacher, str(rows_to_score), str(tmp_path / "many.jsonl"))
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_a_row_that_cannot_be_used_is_named_and_the_shards_before_it_are_kept(tiny_bert, tmp_path):
    file = as_lines(tmp_path / "corpus.jsonl")
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:50], '{"id": "x", "text": 7}', *lines[50:]]) + "\n")
    recipe = ModelRecipe(str(tiny_bert))
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 51: the field text must be a string"):
        encode_on_cluster(cluster_of(), recipe, read_records(file), tmp_path / "many", shard_size=8)
    assert len(list((tmp_path / "many").glob("*.npy"))) == 6


def test_a_text_without_a_vector_is_named_with_its_line(tiny_bert, tmp_path, monkeypatch):
    file = as_lines(tmp_path / "corpus.jsonl")
    poison = rows()[42]["text"]

    def without_one(self, blocks, **options):
        first = 0
        for block in blocks:
            if poison in block:
                error = NumericalError("NaN")
                error.row = first + block.index(poison)
                raise error
            first += len(block)
            yield SimpleNamespace(vectors=np.zeros((len(block), 32)), tokens=0, truncated=[], repaired=[])

    monkeypatch.setattr(FlagModel, "encode_blocks", without_one)
    said = r"corpus\.jsonl, line 43: the text of '0042' has no vector"
    with pytest.raises(NumericalError, match=said):
        encode_to_shards(FlagModel(tiny_bert), read_records(file), tmp_path / "one", shard_size=8)
    recipe = ModelRecipe(str(tiny_bert))
    with pytest.raises(NumericalError, match=said):
        encode_on_cluster(cluster_of(), recipe, read_records(file), tmp_path / "many", shard_size=8)


def test_an_input_that_has_changed_meanwhile_is_an_error(tmp_path):
    file = as_lines(tmp_path / "corpus.jsonl")
    plans = [shard.plan for shard in ShardPlanner(read_records(file), 8)]
    reader = ShardReader(read_records(file))
    assert reader.read(plans[5]).plan == plans[5]
    file.write_text(file.read_text().replace("0050", "0051"))
    with pytest.raises(DataError, match=r"corpus\.jsonl on .* is not what was planned in shard 6"):
        reader.read(plans[6])


def test_shards_are_read_again_in_any_order(tmp_path):
    for form in FORMS:
        file = FORMS[form](tmp_path / "corpus.jsonl")
        plans = [shard.plan for shard in ShardPlanner(read_records(file), 8)]
        reader = ShardReader(read_records(file))
        random.Random(1).shuffle(plans)
        for plan in plans:
            shard = reader.read(plan)
            assert (shard.plan, len(shard.records)) == (plan, plan.texts)


class _Otherwise(FlagModel):
    """A model on another kind of CPU each time that it is loaded."""

    loaded = 0

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        _Otherwise.loaded += 1
        self.kind = f"cpu-{_Otherwise.loaded}"

    @property
    def arithmetic(self):
        return {"class": self.kind, "torch": "2.13.0", "cpu": self.kind}


def test_nodes_of_two_kinds_are_refused_unless_allowed_and_then_recorded(tiny_bert, tmp_path, monkeypatch):
    file = as_lines(tmp_path / "corpus.jsonl")
    monkeypatch.setattr(ModelRecipe, "load", lambda self: _Otherwise(self.name))
    recipe = ModelRecipe(str(tiny_bert))
    with pytest.raises(
        ArgumentError, match=r"the node b computes with .*cpu-2.*, the others with .*cpu-1.*allow-mixed"
    ):
        encode_on_cluster(cluster_of(), recipe, read_records(file), tmp_path / "many", shard_size=8)
    encode_on_cluster(
        cluster_of(), recipe, read_records(file), tmp_path / "many", shard_size=8, allow_mixed=True, overwrite=True
    )
    manifest = json.loads((tmp_path / "many" / "manifest.json").read_text())
    assert [each["class"] for each in manifest["arithmetic"]] == ["cpu-3", "cpu-4"]


class _OtherScores(FlagReranker):
    """A reranker on another kind of CPU each time that it is loaded."""

    loaded = 0

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        _OtherScores.loaded += 1
        self.kind = f"cpu-{_OtherScores.loaded}"

    @property
    def arithmetic(self):
        return {"class": self.kind, "torch": "2.13.0", "cpu": self.kind}


def test_scores_of_two_kinds_are_refused_unless_allowed_on_a_cluster_and_where_a_run_goes_on(
    tiny_reranker, tmp_path, monkeypatch, caplog
):
    file, output = training(tmp_path / "train.jsonl"), tmp_path / "many.jsonl"
    monkeypatch.setattr(ModelRecipe, "load_reranker", lambda self: _OtherScores(self.name))
    monkeypatch.setattr(logging.getLogger("bgekit"), "setLevel", lambda level: None)  # Which actors do.
    recipe = ModelRecipe(str(tiny_reranker))
    with pytest.raises(ArgumentError, match=r"the node b computes with .*cpu-2.*, the others with .*cpu-1.*-mixed"):
        with RemoteTeacher(cluster_of(), recipe) as teacher:
            score(teacher, str(file), str(output))
    with RemoteTeacher(cluster_of(), recipe, allow_mixed=True) as teacher:
        assert score(teacher, str(file), str(output)).scored == 140
    assert "the node b computes with" in caplog.text

    class Stop(Exception):
        pass

    def stop(done, rows):
        raise Stop

    output = tmp_path / "one.jsonl"
    with pytest.raises(Stop):
        score(_OtherScores(tiny_reranker), str(file), str(output), advance=stop)
    with pytest.raises(OutputError, match=r"one.jsonl.partial was computed with .*cpu-5.*, this is .*cpu-6.*-mixed"):
        score(_OtherScores(tiny_reranker), str(file), str(output))
    assert score(_OtherScores(tiny_reranker), str(file), str(output), allow_mixed=True).resumed == 64


def test_passages_to_mine_from_are_not_mixed_either(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "SHARD", 16)
    monkeypatch.setattr(ModelRecipe, "load", lambda self: _Otherwise(self.name))
    file, model = training(tmp_path / "train.jsonl"), FlagModel(tiny_bert)
    task = Mining(str(file), str(tmp_path / "mined.jsonl"), choice=Choice(negatives=3, first=1, last=20))
    with pytest.raises(ArgumentError, match=r"the node b computes with .*allow-mixed"):
        mine(task, [model], encode=partial(encode_on_cluster, cluster_of()))
    mine(task, [model], encode=partial(encode_on_cluster, cluster_of(), allow_mixed=True))
    assert (tmp_path / "mined.jsonl").exists()


def test_standard_input_and_hosted_models_are_refused(tiny_bert, tmp_path):
    with pytest.raises(ArgumentError, match="standard input"):
        encode_on_cluster(cluster_of(), ModelRecipe(str(tiny_bert)), read_records("-"), tmp_path / "many")
    with pytest.raises(ArgumentError, match="computed by its server"):
        ModelRecipe("text-embedding-3-small")


def test_who_helps_writes_no_more_when_the_run_is_over(tmp_path):
    with OutputFolder(tmp_path / "out") as folder, folder.shared() as shared:
        with shared.create("a") as file:
            file.write(b"1")
    with pytest.raises(OutputError, match=r"is not the folder of this run: its run has ended"), shared.create("b"):
        pass
    assert contents(tmp_path / "out") == {"a": b"1"}


def training(path):
    texts = [row["text"] for row in rows(150)]
    lines = [{"query": text[:20], "pos": [text], "neg": texts[n + 1 : n + 3]} for n, text in enumerate(texts[:140])]
    return write_lines(path, lines)


def test_scores_are_those_of_one_process(tiny_reranker, tmp_path):
    file = training(tmp_path / "train.jsonl")
    score(FlagReranker(tiny_reranker), str(file), str(tmp_path / "one.jsonl"))
    with RemoteTeacher(cluster_of(), ModelRecipe(str(tiny_reranker))) as teacher:
        counts = score(teacher, str(file), str(tmp_path / "many.jsonl"))
    assert counts.scored == 140
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_negatives_are_those_of_one_process(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "SHARD", 16)
    file, model = training(tmp_path / "train.jsonl"), FlagModel(tiny_bert)
    choice = Choice(negatives=3, first=1, last=20)
    mine(Mining(str(file), str(tmp_path / "one.jsonl"), choice=choice), [model])
    encode = partial(encode_on_cluster, cluster_of())
    mine(Mining(str(file), str(tmp_path / "many.jsonl"), choice=choice), [model], encode=encode)
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_a_model_that_is_another_one_on_the_nodes_is_refused(tiny_bert, tmp_path):
    model = FlagModel(tiny_bert, dtype="float32")
    model.made_of = (str(tiny_bert), {"dtype": "float32", "max_length": 7})
    with pytest.raises(ArgumentError, match="or is another model there: --dtype makes the precision the same"):
        encode_on_cluster(cluster_of(), model, [Record("a", "x")], tmp_path / "many")
