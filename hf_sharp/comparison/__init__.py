"""Runs of a training script beside each other: settings in files, cells, tables and figures."""
