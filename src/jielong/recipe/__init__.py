"""Recipes: a TOML file, parsed strictly and cross-checked before anything runs."""

from jielong.recipe.recipe import Recipe, Stage, parse_recipe, write_toml
from jielong.recipe.settings import STAGE_SETTINGS

__all__ = ["STAGE_SETTINGS", "Recipe", "Stage", "parse_recipe", "write_toml"]
