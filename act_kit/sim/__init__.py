"""Meta-World behind one class: tasks, starts, the simulator, rendering. Knows nothing of policies or data."""
