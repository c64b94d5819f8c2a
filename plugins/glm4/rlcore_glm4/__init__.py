"""GLM-4-0414 and GLM-Z1-0414 for rlcore: `plugin` is what rlcore finds; presets, recipes and templates lie beside it."""
