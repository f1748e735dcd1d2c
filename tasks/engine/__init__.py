"""The engine: what trains and judges any task, on one process or several, and resumes."""
