"""Ways of making a plan, one file each, behind one small interface."""

from penstock.planning.strategies.registry import Strategy, configured, get, names

__all__ = ["Strategy", "configured", "get", "names"]
