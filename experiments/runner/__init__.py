"""Runs what the experiments declare; makes, shows and saves tables and figures."""
