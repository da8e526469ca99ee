"""Where tests find models and data. The core of the suite needs nothing but tiny models that are made here."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from table_embedder import TableEmbedder
from tiny_rerankers import make_classifier

# How long an example takes says nothing on a machine that does other things, too.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def pytest_collection_finish() -> None:
    """Garbage is not looked for among what stays anyway: imports and thousands of tests.

    Trainers collect garbage at their ends, which took a quarter of a short training run.
    """
    gc.collect()
    gc.freeze()


ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("BGEKIT_SHARED", ROOT.parent / "shared"))

WORDS = (
    "the a of to and in is it that for on with as was are be this by from at or an have not they which one you "
    "cat dog bird tree house river mountain embedding vector search query passage model text language python "
    "code function class library river green blue red small large fast slow run walk read write learn teach"
).split()


def shared(*parts: str) -> Path:
    """A path below shared/, or a skip with the reason."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs shared/{'/'.join(parts)}, which developers have and users do not")
    return path


@pytest.fixture(scope="session")
def shared_path() -> Callable[..., Path]:
    return shared


@pytest.fixture
def embedder() -> Callable[..., TableEmbedder]:
    return TableEmbedder


@pytest.fixture(scope="session")
def bge_small_en() -> Path:
    return shared("models", "bge-small-en-v1.5")


@pytest.fixture(scope="session")
def bge_small_zh() -> Path:
    return shared("models", "bge-small-zh-v1.5")


@pytest.fixture(scope="session")
def minilm() -> str:
    from bgekit.errors import CheckpointError
    from bgekit.models.hub import resolve

    try:
        resolve("packaged:all-MiniLM-L6-v2")
    except CheckpointError as error:
        pytest.skip(str(error))
    return "packaged:all-MiniLM-L6-v2"


def write_wordpiece(
    folder: Path, *, specials: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
) -> None:
    """A small but real WordPiece tokenizer: every byte-sized piece, some words, Chinese characters."""
    letters = [chr(code) for code in range(33, 127)] + list("中文模型向量检索样例数据文档查询")
    pieces = [*specials, *letters, *(f"##{letter}" for letter in letters), *dict.fromkeys(WORDS)]
    vocab = list(dict.fromkeys(pieces))
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=True, model_max_length=64)
    tokenizer.save_pretrained(folder)


def make_tiny(folder: Path, kind: str = "bert", *, pooling: str | None = "cls", seed: int = 0, **extra: Any) -> Path:
    """A tiny random checkpoint of an architecture, with tokenizer and sentence-transformers side files."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    write_wordpiece(folder)
    vocab_size = sum(1 for _ in (folder / "vocab.txt").open(encoding="utf-8"))
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 66, "pad_token_id": 0,
    }  # fmt: skip
    configs: dict[str, Callable[[], Any]] = {
        "bert": lambda: transformers.BertConfig(**{**sizes, "max_position_embeddings": 64, **extra}),
        "roberta": lambda: transformers.RobertaConfig(**{**sizes, **extra}),
        "xlm-roberta": lambda: transformers.XLMRobertaConfig(**{**sizes, **extra}),
        "distilbert": lambda: transformers.DistilBertConfig(
            vocab_size=vocab_size, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64, **extra
        ),
        "modernbert": lambda: transformers.ModernBertConfig(
            **{**sizes, "local_attention": 16, "global_attn_every_n_layers": 2, "num_hidden_layers": 3, **extra},
            cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
        ),
        "qwen3": lambda: transformers.Qwen3Config(**{**sizes, "num_key_value_heads": 2, "head_dim": 8, **extra}),
        "mpnet": lambda: transformers.MPNetConfig(**{**sizes, **extra}),
        "t5": lambda: transformers.T5Config(
            vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0, **extra
        ),
    }  # fmt: skip
    torch.manual_seed(seed)
    config = configs[kind]()
    make = transformers.T5EncoderModel if kind == "t5" else transformers.AutoModel.from_config
    model = make(config)
    with torch.no_grad():  # larger weights than at initialisation, so that attention matters
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
    model.save_pretrained(folder)
    if pooling is not None:
        write_side_files(folder, pooling, 32)
    return folder


def write_side_files(folder: Path, pooling: str, dimension: int) -> None:
    """modules.json, 1_Pooling and sentence_bert_config.json in their legacy form."""
    flags = {
        "cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens",
        "weighted_mean": "pooling_mode_weightedmean_tokens", "last_token": "pooling_mode_lasttoken",
    }  # fmt: skip
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    content = {"word_embedding_dimension": dimension} | {flag: flag == flags[pooling] for flag in flags.values()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": True}))


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a tiny checkpoint: `make_model("roberta", pooling="mean", name="bge-small-en-v1.5")`."""

    def make(kind: str = "bert", *, name: str | None = None, **options: Any) -> Path:
        return make_tiny(tmp_path_factory.mktemp("models") / (name or f"tiny-{kind}"), kind, **options)

    return make


@pytest.fixture(scope="session")
def tiny_bert(make_model: Callable[..., Path]) -> Path:
    """A tiny random BERT with a tokenizer and CLS pooling. Do not change its files: copy the folder."""
    return make_model("bert")


@pytest.fixture(scope="session")
def make_reranker(make_model: Callable[..., Path]) -> Callable[..., Path]:
    """Make a tiny cross-encoder: `make_reranker("roberta", labels=2)`."""
    made: dict[Any, Path] = {}

    def make(kind: str = "bert", *, labels: int = 1, seed: int = 1, **options: Any) -> Path:
        key = (kind, labels, seed, *options.items())
        if key not in made:
            made[key] = make_classifier(make_model(kind, pooling=None, **options), kind, labels, seed)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_reranker(make_reranker: Callable[..., Path]) -> Path:
    """A tiny random BERT cross-encoder. Do not change its files: copy the folder."""
    return make_reranker("bert")


def check_modes(folder: Path) -> None:
    """All files and folders have the mode that the umask gives: who may read the rest may read the weights, too."""
    umask = os.umask(0)
    os.umask(umask)
    found = {path: path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")]}
    wrong = {str(p): oct(mode) for p, mode in found.items() if mode != (0o777 if p.is_dir() else 0o666) & ~umask}
    assert not wrong


def read_readme(folder: Path, monkeypatch: pytest.MonkeyPatch, example: str = "") -> tuple[str, dict[str, Any]]:
    """The README of a model, and its front matter, after its Python example (the one with a word in it) has run."""
    from huggingface_hub import metadata_load

    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"\n# {folder.name}\n" in text
    code = next(block.split("```")[0] for block in text.split("```python\n")[1:] if example in block)
    with monkeypatch.context() as patch:
        patch.chdir(folder.parent)
        exec(code, {})
    return text, metadata_load(folder / "README.md") or {}


@pytest.fixture
def quick_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out and saved, but empty: to render them is a third of a training run of a few steps.

    A test that is marked `draws` gets its figures as users do.
    """
    if request.node.get_closest_marker("draws"):
        return
    from matplotlib.figure import Figure

    def save(figure: Figure, file: Any, *, format: str, **options: Any) -> None:
        file.write('<svg viewBox="0 0 1 1"></svg>' if format == "svg" else b"\x89PNG")

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def random_texts(count: int, *, seed: int = 0, longest: int = 80) -> list[str]:
    """Texts of 1 to `longest` words."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=generator.integers(1, longest + 1))) for _ in range(count)]


@pytest.fixture(scope="session")
def texts() -> Callable[..., list[str]]:
    return random_texts


def expected_scores(folder: Path, pairs: Any, max_length: int = 64) -> Any:
    """Logits of plain transformers, one pair at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    rows = []
    with torch.no_grad():
        for query, passage in pairs:
            inputs = tokenizer(query, passage, truncation="only_second", max_length=max_length, return_tensors="pt")
            rows.append(model.eval()(**inputs).logits[0])
    return torch.stack(rows)


@pytest.fixture(scope="session")
def plain_logits() -> Callable[..., Any]:
    return expected_scores


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub in which tiny models stand under real names."""
    from bgekit import FlagModel
    from bgekit.networks import TokenHeads
    from bgekit.networks.heads import write_heads
    from tiny_rerankers import make_classifier

    cache = tmp_path_factory.mktemp("hub")
    sizes: dict[str, Any] = {
        "hidden_size": 384,
        "num_attention_heads": 6,
        "max_position_embeddings": 512,
        "num_hidden_layers": 1,
    }
    for name in ("BAAI/bge-small-en-v1.5", "BAAI/bge-reranker-base", "BAAI/bge-m3"):
        repository = cache / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        folder = repository / "snapshots" / ("0" * 40)
        make_tiny(folder, pooling=None, **sizes)
        if "reranker" in name:
            make_classifier(folder, "bert", 1, 1)
        if "m3" in name:
            write_heads(TokenHeads(384, sparse=True, multi_vector=384), folder)
    small = cache / "models--BAAI--bge-small-en-v1.5" / "snapshots" / ("0" * 40)
    shutil.copytree(small, cache / "bge-small-en-v1.5")
    FlagModel(cache / "bge-small-en-v1.5").save(cache / "fine-tuned")
    return cache
