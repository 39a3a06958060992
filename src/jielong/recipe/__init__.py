"""Recipes: a TOML file, parsed strictly and cross-checked before anything runs."""

from jielong.recipe.recipe import STAGE_SETTINGS, Recipe, Stage, parse_recipe, write_toml

__all__ = ["STAGE_SETTINGS", "Recipe", "Stage", "parse_recipe", "write_toml"]
