"""Activations computed again in the backward pass instead of kept, as transformers' Trainer asks a network for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ArgumentError


@contextlib.contextmanager
def _supported(model: Any) -> Iterator[Any]:
    try:
        yield model
    except ValueError as error:  # So transformers says it, from the class of the model or of a part of it.
        raise ArgumentError(f"--gradient-checkpointing cannot be used here: {error}") from error


class Recomputing:
    """The methods that Trainer calls with `--gradient-checkpointing`, for a network around a Hugging Face model.

    Reentrant checkpointing would find no gradient behind frozen embeddings, so it is off unless asked for.
    """

    def _recomputed(self) -> Any:
        """The Hugging Face model."""
        raise NotImplementedError

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **layers: Any
    ) -> None:
        """Switch it on, under the name of transformers 5.24; `layers` says which layers and where to keep them."""
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        with _supported(self._recomputed()) as model:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options, **layers)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **layers: Any
    ) -> None:
        """Switch it on, under the name that transformers has up to 5.20."""
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        with _supported(self._recomputed()) as model:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options, **layers)

    def gradient_checkpointing_disable(self) -> None:
        """Switch it off."""
        self._recomputed().gradient_checkpointing_disable()
