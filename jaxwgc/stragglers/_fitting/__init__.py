"""Fitting of delay models to measured times."""
