"""Number formats as parameters of tests: those that this CPU cannot compute in are skipped, with the reason."""

import pytest

from bgekit.networks.cpu_products import has_bfloat16, has_fast_int8

needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="needs bfloat16 in oneDNN")
needs_int8 = pytest.mark.skipif(not has_fast_int8(), reason="needs a CPU with VNNI")
BFLOAT16 = pytest.param("bfloat16", marks=needs_bfloat16)
INT8 = pytest.param("int8", marks=needs_int8)
#: What this CPU computes in.
AVAILABLE = ("float32", *(("bfloat16",) if has_bfloat16() else ()), *(("int8",) if has_fast_int8() else ()))
