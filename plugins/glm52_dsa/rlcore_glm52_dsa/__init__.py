"""GLM-5 and GLM-5.2 for rlcore: `plugin` is what it finds; presets, recipes and template stand beside it."""
