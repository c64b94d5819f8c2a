"""Engines on a real SGLang server keep what engines promise."""

from rlcore.testing.engine_contract import EngineContract


class TestSGLangEngine(EngineContract):
    pass
