"""Families of backbones, one a file: what a task may ask of them, and their attention."""
