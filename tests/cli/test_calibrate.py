"""`bge calibrate`: what it prints, what it writes, what it refuses."""

import json
import re

import numpy as np
import pytest

from bgekit import FlagModel
from bgekit.cli.main import main


@pytest.fixture(scope="module")
def data(tmp_path_factory, texts):
    """Pairs with a label: the second text is the first and one word more, or another text."""
    folder = tmp_path_factory.mktemp("pairs")
    first = texts(1200, longest=12)
    second = [text + " the" if number % 2 else first[number - 1] for number, text in enumerate(first)]
    with (folder / "test.jsonl").open("w") as file:
        for number, (a, b) in enumerate(zip(first, second, strict=True)):
            file.write(json.dumps({"sentence1": a, "sentence2": b, "label": number % 2}) + "\n")
    return folder


def run(*arguments):
    return main(["calibrate", *map(str, arguments), "--fp32", "--quiet"])


def test_prints_a_threshold_and_writes_everything(tiny_bert, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--model", tiny_bert, "--data", data, "--precision", 0.8, "--output", out) == 0
    printed = capsys.readouterr().out
    assert "at least 80% of the pairs from here on are related, with 95% confidence" in printed
    assert "probability that a pair is related" in printed
    assert "<- threshold" in printed
    content = json.loads((out / "calibration.json").read_text("utf-8"))
    assert f"threshold {content['threshold']['value']:.4f}:" in printed
    assert (content["threshold"]["target"], content["threshold"]["wanted"]) == ("precision", 0.8)
    assert content["threshold"]["precision"]["value"] >= 0.8
    assert content["distributions"]["unrelated"]["count"] == content["distributions"]["related"]["count"] == 600
    assert (content["meaning"], content["prevalence"]) == ("probability", 0.5)
    assert f"guaranteed by {content['threshold']['groups']:,} groups" in printed
    assert (out / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in out.iterdir()} == {"calibration.json", "calibration.html", "calibration.png"}


def test_what_was_measured_is_shown_also_where_nothing_can_be_guaranteed(tiny_bert, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--model", tiny_bert, "--data", data, "--precision", 0.999, "--output", out) == 1
    shown = capsys.readouterr()
    assert "unrelated (labelled)" in shown.out and "<- threshold" not in shown.out
    said = r"best that these pairs can guarantee, with 95% confidence: threshold (\S+), at least (\S+)%"
    best = re.search(said, shown.out)
    assert "too few" in shown.err and shown.err.count("\n") == 1
    content = json.loads((out / "calibration.json").read_text("utf-8"))
    assert content["threshold"] is None and content["wanted"] == 0.999
    assert content["best_guarantee"]["value"] == pytest.approx(float(best[1]), abs=1e-4)
    page = (out / "calibration.html").read_text("utf-8")
    assert page.count("<figure") == 2 and f"at least {best[2]}% of the pairs" in page
    # The guarantee that was named is one that the verb gives.
    rate = content["best_guarantee"]["wanted"]
    assert run("--model", tiny_bert, "--data", data, "--precision", rate) == 0
    assert f"threshold {best[1]}:" in capsys.readouterr().out


def test_the_saved_model_gives_calibrated_scores(tiny_bert, data, tmp_path, capsys):
    saved = tmp_path / "saved"
    assert run("--model", tiny_bert, "--data", data, "--save", saved) == 0
    assert f"saved to {saved}" in capsys.readouterr().out
    model = FlagModel(saved, use_fp16=False)
    vectors = model.encode(["a cat", "a dog"])
    scores = model.similarity(vectors, vectors, calibrated=True)
    assert scores.shape == (2, 2) and np.all((scores >= 0) & (scores <= 1))
    threshold = model.card.calibration["threshold"]
    assert (threshold["target"], threshold["wanted"]) == ("false_positive_rate", 0.01)
    # In place: only when it is asked for.
    assert run("--model", saved, "--data", data, "--recall", 0.5, "--save", saved) == 1
    assert "exists" in capsys.readouterr().err
    assert run("--model", saved, "--data", data, "--recall", 0.5, "--save", saved, "--overwrite") == 0
    assert FlagModel(saved).card.calibration["threshold"]["target"] == "recall"


def test_texts_without_labels(tiny_bert, tmp_path, texts, capsys):
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts(200)))
    assert run("--model", tiny_bert, "--texts", file, "--false-positive-rate", 0.05) == 0
    printed = capsys.readouterr().out
    assert " on texts.txt\n" in printed
    assert "unrelated (random)" in printed
    assert "at most 5% of unrelated pairs reach it" in printed
    assert "share of unrelated pairs that are less similar" in printed


def test_pairs_of_few_queries_are_told_how_many_are_needed(tiny_bert, tmp_path, texts, capsys):
    words = texts(610, longest=6)
    with (tmp_path / "test.jsonl").open("w") as file:
        for number in range(10):
            documents = [f"{number} {text}" for text in words[10 + 60 * number : 70 + 60 * number]]
            row = {"query": f"{number} {words[number]}", "positive": documents[:1], "negative": documents[1:]}
            file.write(json.dumps(row) + "\n")
    assert run("--model", tiny_bert, "--data", tmp_path, "--false-positive-rate", 0.05) == 1
    error = capsys.readouterr().err
    assert "590 unrelated pairs are only 10 groups" in error
    assert "at least 59 are needed" in error and "other queries" in error and "0.259 at the very best" in error
    assert run("--model", tiny_bert, "--data", tmp_path, "--false-positive-rate", 0.3) == 0
    printed = capsys.readouterr().out
    assert "guaranteed by 10 groups" in printed and "of 590 pairs in 10 groups" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "0.999"], "too few"),
        (["--precision", "95"], "between 0 and 1"),
        (["--overwrite"], "--save"),
        (["--split", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_one_line(tiny_bert, data, options, message, capsys):
    assert run("--model", tiny_bert, "--data", data, *options) == 1
    error = capsys.readouterr().err
    assert error.startswith("bge: error: ") and error.count("\n") == 1
    assert message in error


def test_two_wishes_are_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--model", "m", "--data", "d", "--precision", 0.9, "--recall", 0.9)
    assert stop.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_texts_from_documents(tiny_bert, tmp_path, texts, capsys):
    notes = tmp_path / "notes"
    (notes / "drafts").mkdir(parents=True)
    (notes / "a.md").write_text("\n\n".join(f"# {n}\n\n{text}" for n, text in enumerate(texts(300, longest=12))))
    (notes / "drafts" / "b.md").write_text("not this")
    command = ["--model", tiny_bert, "--texts", notes, "--exclude", "drafts/", "--false-positive-rate", 0.1]
    assert run(*command) == 1, "one document makes no pairs"
    assert run(*command, "--records", "section") == 0
    assert "unrelated" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", [("--records", "file"), ("--include", "*.md"), ("--delimiter", ";"), ("--text-field", "body")]
)
def test_options_of_texts_are_for_texts(data, option, capsys):
    assert run("--model", "/nowhere/model", "--data", data, *option) == 1
    assert f"{option[0]} goes with --texts" in capsys.readouterr().err


def test_the_last_sentence_says_what_came_out(tiny_bert, data, tmp_path, capsys):
    command = ["calibrate", "--model", str(tiny_bert), "--data", str(data), "--precision", "0.8", "--fp32"]
    assert main([*command, "--no-progress"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(
        r"threshold 0\.\d+: at least 80% of the pairs from here on are related, with 95% confidence; ", last
    )
    assert last.endswith("next: --save DIR saves the model with this calibration in its card")
    assert main([*command, "--no-progress", "--output", str(tmp_path / "out"), "--save", str(tmp_path / "saved")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"written to {tmp_path / 'out'}: calibration.json, " in last
    assert last.endswith(f'next: FlagModel("{tmp_path / "saved"}").similarity(a, b, calibrated=True)')


@pytest.fixture
def judged(tmp_path):
    """Documents, questions and judgements: each question has a word of its document alone."""
    folder = tmp_path / "judged"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "", "text": f"the cat word{n} and the river"} for n in range(60)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    queries = [{"_id": f"q{n}", "text": f"a dog of word{n}"} for n in range(60)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(each) + "\n" for each in queries))
    rows = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(60))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows))
    return folder


def test_weights_of_a_hybrid_search_are_stored_in_the_index_and_used(tiny_bert, judged, tmp_path, capsys):
    index = tmp_path / "index"
    made = ["search", judged / "corpus.jsonl", "--model", tiny_bert, "--index", index, "--parts", "bm25", "-q", "word3"]
    assert main([*map(str, made), "--fp32", "--quiet"]) == 0
    capsys.readouterr()
    assert run("--hybrid", "--index", index, "--data", judged) == 0
    shown = capsys.readouterr().out
    content = json.loads((index / "fusion.json").read_text("utf-8"))
    weights = content["weights"]
    assert f"weights: dense {weights['dense']:.2f}, bm25 {weights['bm25']:.2f}" in shown
    assert sum(weights.values()) == pytest.approx(1) and content["queries"] == 60
    assert {"dense", "bm25"} == {*content["gains"]} and "hybrid" in content["scores"]
    assert "dense alone" in shown or "bm25 alone" in shown
    # Weights that are there are replaced only by those who ask for it.
    (index / "fusion.json").write_text("of others", "utf-8")
    assert run("--hybrid", "--index", index, "--data", judged) == 1
    assert "fusion.json exists; pass --overwrite" in capsys.readouterr().err
    assert (index / "fusion.json").read_text("utf-8") == "of others"
    assert run("--hybrid", "--index", index, "--data", judged, "--overwrite") == 0
    assert json.loads((index / "fusion.json").read_text("utf-8")) == content
    capsys.readouterr()
    assert main(["search", "--index", str(index), "--mode", "hybrid", "-q", "word7", "-k", "1", "--fp32"]) == 0
    said = capsys.readouterr()
    assert "d7" in said.out and f"weights dense {weights['dense']:.2f}" in said.out + said.err


def test_a_file_of_weights_is_replaced_only_by_those_who_ask_for_it(tiny_bert, judged, tmp_path, capsys):
    given = ("--hybrid", "--model", tiny_bert, "--data", judged, "--output", tmp_path / "weights.json")
    assert run(*given) == 0
    assert run(*given) == 1
    assert "exists; pass --overwrite" in capsys.readouterr().err
    assert run(*given, "--overwrite") == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--hybrid", "--data", "{judged}"), "give --index DIR, whose model is known, or --model MODEL"),
        (("--hybrid", "--data", "{judged}", "--model", "m", "--precision", "0.9"), "--precision goes with thresholds"),
        (("--hybrid", "--data", "{judged}", "--index", "nowhere"), "nowhere does not exist"),
        (("--data", "{judged}", "--model", "m", "--modes", "dense", "bm25"), "--modes goes with --hybrid"),
        (("--data", "{judged}"), "--model is needed"),
        (("--hybrid", "--data", "{pairs}", "--model", "m"), "judged queries of one retrieval task"),
    ],
)
def test_what_does_not_go_together_is_said_before_a_model_is_loaded(judged, data, arguments, says, capsys):
    assert run(*(each.format(judged=judged, pairs=data) for each in arguments)) == 1
    assert says in capsys.readouterr().err
