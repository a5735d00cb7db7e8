"""Runs the studies of experiments; makes, shows and saves tables and figures."""
