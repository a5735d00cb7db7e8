"""Measured times of workers: arrays, frames, files, and names of columns.

For other rooms and the command line; users pass arrays and DataFrames to those.
"""
