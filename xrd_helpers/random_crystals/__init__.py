"""Random crystals: what they are made of (``recipes``), their molecules, and how these are packed."""

from .recipes import MOLECULE_SPACEGROUPS, RECIPES, SPACEGROUPS, can_make, mixture, random_crystals

__all__ = ["MOLECULE_SPACEGROUPS", "RECIPES", "SPACEGROUPS", "can_make", "mixture", "random_crystals"]
