"""The version of bgekit, and those of other packages for the record."""

from __future__ import annotations

__version__ = "0.1.0"


def package_versions(*packages: str) -> dict[str, str]:
    """Versions of bgekit and of those of other packages that are installed, by their names on PyPI."""
    import importlib.metadata  # Not at the top: it costs `import bgekit` milliseconds.

    versions = {"bgekit": __version__}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # An extra that is not installed.
    return versions
