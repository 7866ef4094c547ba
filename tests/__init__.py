"""The tests, and what they share."""

import functools
import importlib.metadata

# accelerate asks whether DeepSpeed is installed whenever a model is unwrapped, which is in each pass of some Trainers, and
# parses its metadata for that each time: a third of what these tests take.
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)
