"""The command line: the only room that imports Hydra. `main.py` is its top."""
