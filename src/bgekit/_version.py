"""The version of bgekit."""

__version__ = "0.1.0"
