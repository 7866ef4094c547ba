"""Figures of measurements: each function takes results as they stand in JSON, by the name of the run, and gives a figure."""

from __future__ import annotations

from hf_sharp.measure.figures.curves import between, evolution, line, smoothed
from hf_sharp.measure.figures.maps import contours, surfaces
from hf_sharp.measure.figures.paper import hills, regions, trajectories
from hf_sharp.measure.figures.spectra import density, eigenvalues, extrema
from hf_sharp.measure.figures.statistics import correlation
from hf_sharp.measure.figures.style import save

__all__ = [
    "between",
    "contours",
    "correlation",
    "density",
    "eigenvalues",
    "evolution",
    "extrema",
    "hills",
    "line",
    "regions",
    "save",
    "smoothed",
    "surfaces",
    "trajectories",
]
