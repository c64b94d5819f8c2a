"""GLM-4.7-Flash for rlcore: `plugin` is what it finds; preset, recipes and template stand beside it."""
