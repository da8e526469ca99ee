"""Products whose rows have the same bits in every number of rows and threads."""

from __future__ import annotations

import pickle
import threading

import pytest
import torch

from bgekit.networks.arithmetic import arithmetic_of
from bgekit.networks.cpu_products import FEW, MANY, Linear, RowCheck, row_check, threads_of
from precisions import needs_bfloat16

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
BF16 = pytest.param(torch.bfloat16, marks=needs_bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize(("inputs", "outputs"), [(384, 384), (1536, 384), (768, 768), (33, 7)])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_a_row_does_not_depend_on_the_others(
    inputs: int, outputs: int, activation: str | None, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(1)
    layer = Linear(
        torch.randn(outputs, inputs, generator=draw), torch.randn(outputs, generator=draw), dtype, activation
    )
    x = torch.randn(700, inputs, generator=draw).to(dtype)
    other = torch.randn(700, outputs, generator=draw).to(dtype)
    with threads_of(1):
        alone, added = layer(x[:MANY]), layer.plus(x[:MANY], other[:MANY])
    for threads in (1, 2, 3):
        with threads_of(threads):
            for rows in (1, 2, 7, 8, 16, 40, 48, 92, 255, 256, 257, 300, 512, 700):
                few = min(rows, MANY)
                assert torch.equal(layer(x[:rows])[:few], alone[:few]), (threads, rows)
                assert torch.equal(layer.plus(x[:rows], other[:rows])[:few], added[:few]), (threads, rows)
                rest = min(rows, MANY - 3)
                assert torch.equal(layer(x[3 : 3 + rows])[:rest], alone[3 : 3 + rest]), (threads, rows)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize(("inputs", "outputs"), [(768, 768), (768, 2304), (3072, 768), (33, 7)])
def test_a_row_of_a_short_sequence_does_not_depend_on_the_others(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(2)
    layer = Linear(torch.randn(outputs, inputs, generator=draw), torch.randn(outputs, generator=draw), dtype)
    x, other = (torch.randn(808, columns, generator=draw).to(dtype) for columns in (inputs, outputs))
    with threads_of(1):
        few = layer(x[:FEW], FEW), layer.plus(x[:FEW], other[:FEW], FEW)
    for threads in (1, 2):
        with threads_of(threads):
            for rows in (16, 48, 130, 800):
                # In bulk the product is made of blocks of columns, or of parts of 32 rows.
                for start in (0, 8):
                    whole = layer(x[start : start + rows], FEW), layer.plus(x[start:][:rows], other[start:][:rows], FEW)
                    for result, expected in zip(whole, few, strict=True):
                        assert torch.equal(result[: FEW - start], expected[start : start + rows]), (threads, rows)
    assert torch.equal(
        pickle.loads(pickle.dumps(layer._check)).reference(False, FEW), layer._check.reference(False, FEW)
    )


def test_the_product_is_that_of_torch() -> None:
    draw = torch.Generator().manual_seed(1)
    weight, bias, x = (torch.randn(*shape, generator=draw) for shape in ((96, 64), (96,), (600, 64)))
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    layer = Linear(weight, bias, torch.float32)
    assert (layer(x) - expected).abs().max() < 1e-4
    assert (layer.plus(x, expected.float()) - 2 * expected).abs().max() < 1e-4


def checked(safe: set[tuple[int, int]]) -> RowCheck:
    """A check by which these numbers of rows and threads are safe."""
    check = RowCheck(8, 8, torch.float32)
    check._holds = lambda rows, threads, adds, like: (rows, threads) in safe  # type: ignore[method-assign]
    return check


def test_rows_are_padded_cut_or_given_to_one_thread() -> None:
    check = checked({(48, 1), (64, 1), (256, 1), (96, 2), (256, 2), (1024, 1)})
    with threads_of(1):
        assert check.parts(1024, False) is None
        assert check.parts(48, False) is None
        assert check.parts(16, False) == ((0, 16, 48, 1),)
        assert check.parts(65, False) == ((0, 65, 256, 1),)
        assert check.parts(600, False) == ((0, 256, 256, 1), (256, 512, 256, 1), (512, 600, 256, 1))
    with threads_of(2):
        assert check.parts(90, False) == ((0, 90, 96, 2),)
        assert check.parts(16, False) == ((0, 16, 48, 1),)  # More than four times the rows are worse than one thread.
        assert check.parts(300, True) == ((0, 256, 256, 2), (256, 300, 48, 1))


def test_where_nothing_is_safe_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    check = checked(set())
    with threads_of(1):
        assert check.parts(16, False) == ((0, 16, 16, 1),)
        check.parts(16, False)
    assert caplog.text.count("the last bits of a vector depend on its batch") == 1


def test_what_is_tried_is_nothing_but_rounding() -> None:
    check = RowCheck(768, 64, torch.float32)
    reference = check.reference(adds=False)
    assert 0 < reference.abs().max() < 1e-3
    assert (reference != 0).double().mean() > 0.9


def test_layers_share_the_check_and_another_process_has_its_own() -> None:
    one, two = (Linear(torch.ones(8, 16), torch.zeros(8), torch.float32) for _ in range(2))
    assert one._check is two._check is row_check(16, 8, torch.float32, None)
    assert pickle.loads(pickle.dumps(one._check)) is one._check


def test_threads_are_those_of_the_calling_thread() -> None:
    before, seen = torch.get_num_threads(), []
    with threads_of(1):
        assert torch.get_num_threads() == 1
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert torch.get_num_threads() == before
    assert seen


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_arithmetic_of_this_cpu_is_the_same_each_time(precision: str) -> None:
    from bgekit.networks import arithmetic

    found = arithmetic_of(precision, [torch.device("cpu")])
    for threads in (1, 2):
        arithmetic._cpu_class.cache_clear()
        with threads_of(threads):
            assert arithmetic_of(precision, [torch.device("cpu")] * 2) == found
    assert len(found["class"]) == 16
    assert found["torch"] == torch.__version__
