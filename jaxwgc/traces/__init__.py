"""Measured times of workers from arrays, DataFrames and files.

Used by other packages and by the command line, to which users pass these times.
"""
