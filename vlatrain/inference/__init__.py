"""Scoring a finished run again, and asking it."""
