"""Many machines: encoding, mining, scoring and evaluation on a cluster of Ray, and what pipelines of Ray Data need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .batch_encoder import BgeEncoder as BgeEncoder
    from .cluster import RayCluster as RayCluster
    from .encoding import encode_on_cluster as encode_on_cluster
    from .ray_data import ShardDatasink as ShardDatasink
    from .ray_data import read_texts as read_texts
    from .recipes import ModelRecipe as ModelRecipe
    from .scoring import RemoteTeacher as RemoteTeacher

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "batch_encoder": ("BgeEncoder",),
        "cluster": ("RayCluster",),
        "encoding": ("encode_on_cluster",),
        "ray_data": ("ShardDatasink", "read_texts"),
        "recipes": ("ModelRecipe",),
        "scoring": ("RemoteTeacher",),
    },
)
