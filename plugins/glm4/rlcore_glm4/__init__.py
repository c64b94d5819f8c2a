"""GLM-4-0414 and GLM-Z1-0414 for rlcore: `plugin` is what it finds; presets, recipes, templates beside it."""
