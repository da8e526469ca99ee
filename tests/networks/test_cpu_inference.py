"""The fused CPU encoder against plain transformers: every length, order and company, and scores out of range."""

from __future__ import annotations

import math
import os
import platform
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from bgekit import FlagModel
from bgekit.errors import ArgumentError
from bgekit.networks import cpu_attention, cpu_inference
from bgekit.networks.cpu_attention import OwnAttention, attend
from bgekit.networks.cpu_inference import KERNELS, FusedEncoder, can_fuse
from bgekit.networks.cpu_products import FEW, Int8Linear
from precisions import INT8, needs_bfloat16, needs_int8

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
BF16 = pytest.param(torch.bfloat16, marks=needs_bfloat16)
FP32 = torch.float32
#: Least cosine of a token's vector to plain transformers in float32, with weights drawn at random. Real models are
#: held to 0.999 in bfloat16 (docs/performance.md); their int8 vectors have 0.9989.
LEAST = {FP32: 1 - 1e-6, torch.bfloat16: 0.9995, "int8": 0.995}

#: Around every rounding step, alone and in runs, up to the longest.
LENGTHS = (1, 2, 3, 7, 8, 9, 63, 64, 65, 70, 70, 70, 71, 128, 129, 255, 256, 257, 300, 511, 512, 512)


def make(kind: Any = BertModel, **options: Any) -> Any:
    """A small transformer whose attention matters: its weights are larger than at initialisation."""
    config: Any = BertConfig if kind is BertModel else RobertaConfig
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    torch.manual_seed(0)
    model = kind(config(vocab_size=300, max_position_embeddings=514, **{**sizes, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in a stream of the engine: here nothing is large enough for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(one_thread: None) -> Any:
    return make()


@pytest.fixture(scope="module")
def reference(model: Any) -> tuple[list[list[int]], list[Tensor]]:
    """Sequences of `LENGTHS`, and what plain transformers makes of each."""
    ids = token_ids(LENGTHS)
    return ids, [plain(model, [row]) for row in ids]


def token_ids(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 300, (length,), generator=generator).tolist() for length in lengths]


def plain(model: Any, ids: Sequence[Sequence[int]]) -> Tensor:
    """Each text by itself in plain transformers: nothing is padded, grouped or rounded up."""
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in ids])


def run(encoder: FusedEncoder, ids: Sequence[Sequence[int]], select: Any = "all") -> Tensor:
    return encoder(torch.tensor([token for row in ids for token in row]), [len(row) for row in ids], select)


def worst(a: Tensor, b: Tensor) -> float:
    return float(cosine_similarity(a.double(), b.double(), dim=-1).min())


@pytest.mark.parametrize("dtype", [FP32, BF16, INT8])
def test_lengths_from_1_to_512_in_any_order(
    model: Any, reference: tuple[list[list[int]], list[Tensor]], dtype: Any, kind_of_cpu: str
) -> None:
    encoder = FusedEncoder(model, dtype)
    ids, hidden = reference
    for order in (range(len(ids)), random.Random(1).sample(range(len(ids)), len(ids))):
        for select in ("all", "first", "last"):
            part = {"all": slice(None), "first": slice(1), "last": slice(-1, None)}[select]
            expected = torch.cat([hidden[row][part] for row in order])
            got = run(encoder, [ids[row] for row in order], select)
            assert got.dtype == FP32 and got.shape == expected.shape
            assert worst(got, expected) > LEAST[dtype]
            if dtype == FP32:
                assert (got - expected).abs().max() < 1e-4  # after a norm, values are up to about 4


@pytest.fixture(params=KERNELS)
def kind_of_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of CPU in turn, as if this were one: what is computed with, not what that is computed by."""
    monkeypatch.setattr(cpu_inference, "kernels", lambda: KERNELS[request.param])
    return str(request.param)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("dtype", [FP32, INT8])
def test_every_activation(activation: str, dtype: Any) -> None:
    model = make(hidden_act=activation)
    ids = token_ids([5, 30, 30, 77])
    assert worst(run(FusedEncoder(model, dtype), ids), plain(model, ids)) > LEAST[dtype]


# --- attention scores that a softmax without the row's maximum cannot hold


@pytest.fixture
def exact_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each call that fell back to the exact softmax."""
    calls: list[int] = []
    original = cpu_attention.scaled_dot_product_attention

    def counting(query: Tensor, *arguments: Any, **options: Any) -> Tensor:
        calls.append(len(query))
        return original(query, *arguments, **options)

    monkeypatch.setattr(cpu_attention, "scaled_dot_product_attention", counting)
    return calls


@pytest.mark.parametrize("dtype", [FP32, BF16, INT8])
def test_huge_attention_scores(dtype: Any, exact_calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_inference, "kernels", lambda: KERNELS["other"])
    model = make()
    ids = token_ids([1, 2, 9, 40, 64, 64, 70])
    encoder = FusedEncoder(model, dtype)
    own = encoder.attention is OwnAttention
    run(encoder, [row for row in ids if len(row) > FEW])
    assert bool(exact_calls) != own  # ordinary scores need no third pass
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.attention.self.query.weight *= 300
    got = run(FusedEncoder(model, dtype), ids)
    assert exact_calls
    assert torch.isfinite(got).all()
    if dtype == FP32:  # scores of thousands: a rounding in 8 or 16 bits decides which token wins
        assert worst(got, plain(model, ids)) > 1 - 1e-5
    else:  # a sequence whose scores are out of range does not change the way of the others
        alone = torch.cat([run(FusedEncoder(model, dtype), [row]) for row in ids])
        assert torch.equal(alone, got)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("queries", [1, 24])
def test_attention_is_softmax_at_any_scale(scale: float, padded: bool, queries: int, exact_calls: list[int]) -> None:
    torch.manual_seed(2)
    n, heads, length, width = 3, 2, 24, 8
    query, key, value = (torch.randn(n, heads, rows, width) for rows in (queries, length, length))
    query *= scale
    mask = (torch.arange(length) < torch.tensor([[24], [20], [17]]))[:, None, None, :] if padded else None
    out = torch.empty(n, queries, heads, width)
    own = torch.full((n, 1, 1, 1), float(length)) if mask is None else mask.sum(3, keepdim=True).float()
    attend(query, key, value, None if mask is None else mask.float().transpose(2, 3), own, out)
    scores = (query.double() @ key.double().transpose(2, 3)) * math.log(2)  # given in units of log2
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    expected = (scores.softmax(-1) @ value.double()).transpose(1, 2)
    assert (out - expected).abs().max() < 1e-6 * max(10.0, scale)  # float32 scores of thousands are coarse
    assert bool(exact_calls) == (scale > 10)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_not_a_number_is_not_hidden(part: str, dtype: Any, kind_of_cpu: str) -> None:
    model = make()
    with torch.no_grad():
        getattr(model.encoder.layer[0].attention.self, part).weight[0, 0] = float("nan")
    ids = token_ids([1, 2, 9, 15, 16, 17, 30, 64])
    for company in ([row] for row in ids):
        assert torch.isnan(run(FusedEncoder(model, dtype), company, "first")).any(1).all()
    assert torch.isnan(run(FusedEncoder(model, dtype), ids, "first")).any(1).all()


# --- 8 bits


@needs_int8
def test_a_linear_layer_in_8_bits() -> None:
    torch.manual_seed(3)
    weight, bias, x = torch.randn(48, 64), torch.randn(48), torch.randn(100, 64)
    x[0] = 0
    x[1] = 3.5
    x[2] = -2
    x[3, 5] = 1e4  # a token with an outlier is coarse itself, and nobody else is
    layer = Int8Linear(weight, bias)
    got, expected = layer(x), x @ weight.T + bias
    steps = (x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)) / 254
    # Half a step of each activation times the weights, and half a step of each weight times the activations.
    bound = steps[:, None] / 2 * weight.abs().sum(1) + x.abs().sum(1)[:, None] * weight.abs().amax(1) / 254
    assert ((got - expected).abs() <= bound + 1e-4 * x.abs().amax(1)[:, None] + 1e-4).all()
    assert torch.allclose(got[0], bias, atol=1e-6)
    alone = torch.cat([layer(row[None]) for row in x])
    assert (alone - got).abs().max() <= 1e-6 * got.abs().max()


def test_8_bits_need_a_cpu_for_them(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_inference, "has_fast_int8", lambda: False)
    with pytest.raises(ArgumentError, match="needs a CPU with VNNI"):
        FusedEncoder(model, "int8")


# --- positions


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_padding_tokens_spelled_in_a_text_have_the_position_of_padding(padding: int) -> None:
    """As in transformers, which derives RoBERTa's positions from the ids that are not padding."""
    model = make(RobertaModel, pad_token_id=padding)
    with torch.no_grad():  # a trained checkpoint need not have zeros there
        model.embeddings.position_embeddings.weight[padding].normal_()
    ids = token_ids([9, 40, 12, 1, 40, 3])
    for row, places in ((0, (4,)), (1, (0, 7, 8, 39)), (3, (0,)), (5, (0, 1, 2))):
        for place in places:
            ids[row][place] = padding
    got = run(FusedEncoder(model, FP32), ids)
    assert (got - plain(model, ids)).abs().max() < 1e-4


# --- what is refused


def test_impossible_batches(model: Any) -> None:
    encoder = FusedEncoder(model, FP32)
    for ids, lengths in (([], []), ([5, 6], [1]), ([5, 6], [2, 0]), ([5], [2]), ([5, 6], [3, -1])):
        with pytest.raises(ArgumentError, match="lengths of at least 1"):
            encoder(torch.tensor(ids, dtype=torch.long), lengths)
    with pytest.raises(ArgumentError, match="lengths of at least 1"):
        encoder(torch.tensor([[5, 6]]), [2])


@pytest.mark.parametrize(("kind", "longest"), [(BertModel, 514), (RobertaModel, 512)])
def test_the_longest_sequence_is_as_long_as_there_are_positions(kind: Any, longest: int) -> None:
    encoder = FusedEncoder(make(kind, num_hidden_layers=1), FP32)
    assert torch.isfinite(run(encoder, token_ids([longest]), "first")).all()
    with pytest.raises(ArgumentError, match=f"a sequence of {longest + 1} tokens: this model has {longest} positions"):
        run(encoder, token_ids([longest + 1]), "first")


def test_what_cannot_be_fused(model: Any) -> None:
    assert can_fuse(model)
    with pytest.raises(ArgumentError, match="float16 is not supported"):
        FusedEncoder(model, torch.float16)
    adapted = make(num_hidden_layers=1)
    adapted.encoder.layer[0].attention.self.query = nn.Sequential(nn.Linear(64, 64))
    for other in (make(hidden_act="silu"), make(is_decoder=True), adapted):
        assert not can_fuse(other)
        with pytest.raises(ArgumentError, match="cannot be fused"):
            FusedEncoder(other, FP32)


def test_the_source_is_left_as_it_is(model: Any) -> None:
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    run(FusedEncoder(model, FP32), token_ids([9]))
    assert all(torch.equal(before[name], parameter) for name, parameter in model.state_dict().items())


@pytest.mark.parametrize(
    ("sequences", "heads", "most"), [(1, 12, 100), (7, 12, 50), (100, 1, 7), (2, 12, 8), (1, 2, 1), (0, 2, 3)]
)
def test_parts_of_attention_are_few_and_complete(sequences: int, heads: int, most: int) -> None:
    parts = list(cpu_attention._parts(sequences, heads, most))
    sizes = {part.stop - part.start for part in parts}
    assert [row for part in parts for row in range(sequences * heads)[part]] == list(range(sequences * heads))
    step = heads if heads <= most else 1
    assert all(size <= most and size % step == 0 and (size // step).bit_count() == 1 for size in sizes)


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When memory was given back, on a clock that stands still until a test sets it."""
    times: list[float] = []
    monkeypatch.setattr(cpu_inference, "return_freed_memory", lambda: times.append(cpu_inference.time.monotonic()))
    return times


def test_memory_is_given_back_every_few_seconds(trims: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(cpu_inference.time, "monotonic", lambda: now)
    trimmer = cpu_inference.Trimmer()
    for step in range(200):
        now = 100.0 + step / 10
        trimmer.trim()
    assert trims == [105.0, 110.0, 115.0]


def test_long_calls_do_it_and_short_ones_do_not(
    tiny_bert: Path, trims: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FlagModel(tiny_bert, use_fp16=False, devices="cpu")
    some = [f"text {number}" for number in range(4200)]
    model.encode("a query")
    assert not trims
    monkeypatch.setattr(cpu_inference, "_TRIM_SECONDS", 0.0)
    model.encode(some)
    assert len(trims) == 3  # after each block
    list(model.encode_blocks([some[:10], some[10:20]]))
    assert len(trims) == 5


def test_it_can_be_done_here() -> None:
    cpu_inference.return_freed_memory()


@pytest.mark.parametrize(("limit", "kind"), [("", "amx"), ("AVX512_CORE_BF16", "other"), ("avx512_core_amx", "amx")])
def test_kernels_follow_what_onednn_may_use(limit: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert cpu_inference.kernels() is KERNELS[kind]


def test_bfloat16_is_refused_where_the_cpu_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_inference, "has_bfloat16", lambda: False)
    with pytest.raises(ArgumentError, match="cannot compute in bfloat16: leave dtype out"):
        FusedEncoder(make(), torch.bfloat16)


#: Page faults of blocks of 1, 2, ... 24 MiB that are written and freed one after the other, 300 MiB in all.
FAULTS = """
import resource
import torch
from bgekit.networks.cpu_inference import keep_freed_memory
keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for size in range(1, 25):
    torch.ones(size << 18)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_batch() -> None:
    """By itself glibc gives each of them back to the system, as it is the largest so far."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, check=True, capture_output=True, text=True)
    assert float(done.stdout) < 100
