"""A file that holds one split of a data set, and what is known about the set: what the readers of rows work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ...errors import DataError
from ..task import Exclusion, Kind
from .lines import Exclusions
from .paths import DataFile, Folder


@dataclass(frozen=True)
class Wanted:
    """What a caller knows of a data set before it is read.

    Attributes:
        name: Its name; "" for that of its folder or its description.
        kind: What it is; None to see it from its content.
        subset: The one of its subsets (configurations, languages) that is wanted, such as `en`.
    """

    name: str = ""
    kind: Kind | None = None
    subset: str = ""


#: Whatever is there.
ANY: Final = Wanted()


@dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
        name: The task's name.
        split: Its name.
        file: The file with its rows.
        folder: Where it stands, with files of other splits.
        facts: Fields of `Task` that are known, such as `published`.
        protocol: Fields of the kind's own class that are known, such as `samples_per_label`.
        remarks: What was noticed before its rows were read.
    """

    name: str
    split: str
    file: DataFile
    folder: Folder
    facts: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def fields(self, exclusions: Exclusions, *names: str) -> dict[str, Any]:
        """The fields of a task that do not depend on its kind, and those of the protocol that have these names."""
        left_out: tuple[Exclusion, ...] = exclusions.listed()
        known = {"comparable": False} | dict(self.facts)
        protocol = {name: value for name, value in self.protocol.items() if name in names}
        known["remarks"] = (*known.get("remarks", ()), *self.remarks)
        return {"name": self.name, "split": self.split, "exclusions": left_out} | known | protocol

    def remarking(self, *remarks: str) -> Source:
        """The same with further remarks."""
        return replace(self, remarks=(*self.remarks, *remarks))

    def nothing_left(self, exclusions: Exclusions) -> DataError:
        """The error for data of which no item can be used."""
        return DataError(f"{self.file} leaves nothing to evaluate: {exclusions}")
