"""Ways of making a plan, one file each, behind one small interface."""

from penstock.planning.strategies.registry import Strategy, get, names

__all__ = ["Strategy", "get", "names"]
