"""The Megatron trainer: what one rank does. Importing it prepares Megatron for the machine at hand."""

from rlcore.trainer import compat

compat.install()
