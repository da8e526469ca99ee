"""Shapes of API: each module has `routes(server) -> list[Route]`, made of `calls.endpoint`."""

from __future__ import annotations

from typing import Final

#: The modules, in the order in which their routes are tried.
MODULES: Final[tuple[str, ...]] = ("openai", "tei", "rerank", "root", "cohere", "pooling", "search", "openapi", "page")
