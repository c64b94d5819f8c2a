"""rlcore: reinforcement learning for language models, with every model family and every reward a plugin."""

__version__ = "0.1.0"
