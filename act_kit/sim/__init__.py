"""Simulation of Meta-World: tasks, initial states, simulator and rendering, independent of policies and datasets."""
