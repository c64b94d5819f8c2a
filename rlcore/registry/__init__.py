"""Finds plugins through entry points, loads the ones that a recipe names, and locks what it loaded.

Listing reads metadata files only; nothing of a plugin is imported until `Catalog.load`.
"""

from rlcore.registry.candidate import Candidate
from rlcore.registry.catalog import Catalog

__all__ = ["Candidate", "Catalog"]
