"""Files of texts -> sequences on disk."""

import gzip
import hashlib
import json
import pickle

import numpy as np
import pytest

from bgekit.errors import DataError
from bgekit.inference.tokenization import load_tokenizer
from bgekit.pretraining.token_store import Reading, Tokenization, read_texts


@pytest.fixture
def tokens(models):
    return Tokenization.of(load_tokenizer(models("bert")), "tiny")


@pytest.fixture
def read(tokens, tmp_path):
    def read(*paths, room=16, **options):
        return read_texts([str(path) for path in paths], tokens, Reading(room, **options), str(tmp_path / "cache"))

    return read


def decoded(tokens, data):
    return [tokens.backend.decode(data.sequence(number)[0].tolist()) for number in range(len(data))]


def test_all_forms_and_folders(read, tokens, tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text": "the cat"}\n{"title": "a dog", "text": "in the house"}\n')
    (folder / "b.txt.gz").write_bytes(gzip.compress(b"red bird\n\n  \nblue river\n"))
    (folder / "inner" / "c.csv").write_text("id,text\n1,small tree\n")
    (folder / ".hidden.txt").write_text("not this\n")
    data = read(folder)
    assert decoded(tokens, data) == ["the cat", "a dog in the house", "red bird", "blue river", "small tree"]
    assert (data.facts.texts, data.facts.empty) == (5, 2)
    assert [count for _, count in data.counts] == [2, 2, 1]
    again = pickle.loads(pickle.dumps(data))
    assert again.sequence(3)[0].tolist() == data.sequence(3)[0].tolist()
    assert again.fingerprint == data.fingerprint


def test_documents_of_a_folder(read, tokens, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.md").write_text("# The house\n\na red bird\n\n## A tree\n\nthe cat\n")
    (folder / "b.rst").write_text("blue river\n\nsmall tree\n")
    (folder / "c.csv").write_text("id^text\n1^the dog\n")
    (folder / "ignored.txt").write_text("not this\n")
    (folder / ".gitignore").write_text("ignored.txt\n")
    (folder / "dataset.json").write_text('{"text": "not this"}')
    common = {"delimiter": "^"}
    assert decoded(tokens, read(folder, **common))[1:] == ["the dog"]
    parts = decoded(tokens, read(folder, records="section", exclude=("c.csv",)))
    assert len(parts) == 2 and parts[1].endswith("the cat")
    assert decoded(tokens, read(folder, include=("*.rst",), records="paragraph")) == ["blue river", "small tree"]
    assert decoded(tokens, read(folder, include=("*.rst",))) == ["blue river small tree"]


def test_long_texts_are_split_at_words_or_cut(read, tmp_path, texts):
    path = tmp_path / "a.txt"
    lines = texts(40, longest=60, seed=3)
    path.write_text("\n".join(lines))
    whole, split, cut = read(path, room=1000), read(path, room=17), read(path, room=17, long_texts="cut")
    assert len(cut) == len(whole) == 40 < len(split)
    assert split.lengths.max() <= 17
    rebuilt, sizes = {}, {}
    for number, text in enumerate(split.stores[0].texts):
        ids, begins = split.sequence(number)
        assert begins[0]
        rebuilt.setdefault(int(text), []).extend(ids.tolist())
        sizes.setdefault(int(text), []).append(len(ids))
    for number in range(40):
        ids, begins = whole.sequence(number)
        assert rebuilt[number] == ids.tolist()
        assert cut.sequence(number)[0].tolist() == ids.tolist()[:17]
        assert all(begins[end] for end in np.cumsum(sizes[number])[:-1])
        assert max(sizes[number]) - min(sizes[number]) <= 3  # No stubs.


def test_stored_once(read, tmp_path, caplog):
    path = tmp_path / "a.txt"
    path.write_text("the cat\na dog\n")
    first = read(path)
    stamp = first.stores[0].path.stat().st_mtime_ns
    assert read(path).stores[0].path.stat().st_mtime_ns == stamp
    assert read(path, room=8).stores[0].path != first.stores[0].path
    first.stores[0].path.write_bytes(b"\0")
    assert len(read(path)) == 2 and "made again" in caplog.text


def test_what_0_1_0_stored_is_left_alone_and_its_checkpoints_go_on(read, tokens, tmp_path):
    """Its stores were folders; a checkpoint names its data by the hash of their names."""

    def sha256(text):
        return hashlib.sha256(text.encode()).hexdigest()

    path = tmp_path / "a.txt"
    path.write_text("the cat\na dog\n")
    (name,) = (store.path.name for store in read(path).stores)
    assert name.endswith(".tokens.arrow")
    (tmp_path / "cache" / name).unlink()
    folder = tmp_path / "cache" / name.removesuffix(".arrow")
    folder.mkdir()
    (folder / "facts.json").write_text("{}")
    reading = {"room": 16, "long_texts": "split", "text_field": None, "title_field": None, "on_error": "raise"}
    content = sha256(f'["1", "txt"]{sha256(path.read_text())}')[:40]
    way = json.dumps([1, content, reading, sha256(tokens.backend.to_str())])
    assert folder.name == f"{sha256(way)[:40]}.tokens"
    data = read(path)
    assert len(data) == 2 and (folder / "facts.json").is_file()
    assert data.fingerprint == hashlib.sha256(folder.name.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": 3}\n', "a.jsonl, line 2"),
        ("a.jsonl", '{"text": "x"}\n{"body": "y"}\n', "line 2: no field text"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', "line 2: not valid JSON"),
        ("a.txt", b"good\n\xff\xfe\xff\n", "line 2: not valid UTF-8"),
        ("a.csv", "id,words\n1,x\n", "has no column text"),
        ("a.txt", "\n\n", "there is no text"),
    ],
)
def test_bad_data_names_file_and_line(read, tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=says):
        read(path)
    assert not list((tmp_path / "cache").glob(".*"))


def test_bad_lines_can_be_skipped(read, tokens, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "red"}\n{"text": 3}\n{"text": "a \\ud800 blue"}\n')
    data = read(path, on_error="skip")
    assert data.facts.skipped == 1 and decoded(tokens, data)[0] == "red" and len(data) == 2


@pytest.mark.parametrize("name", ["nowhere.txt", "empty", "-"])
def test_what_is_not_there(read, tmp_path, name):
    (tmp_path / "empty").mkdir(exist_ok=True)
    with pytest.raises(DataError):
        read(name if name == "-" else tmp_path / name)


def test_a_share_of_the_texts_is_held_out_as_a_whole(read, tmp_path, texts):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(300, longest=50)))
    data = read(path)
    kept, held = data.split(0.2, 0)
    assert len(kept) + len(held) == len(data)
    rows = data.stores[0].texts
    assert not set(rows[kept._chosen]) & set(rows[held._chosen])
    assert 30 < len(set(rows[held._chosen])) < 90
    assert kept.fingerprint != data.fingerprint != data.split(0.2, 1)[0].fingerprint
    with pytest.raises(DataError, match="--validation-split"):
        data.split(1e-9, 0)
