"""Delay models fitted to times that were measured."""
