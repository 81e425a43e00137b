"""Adapters made of others: averages, fusions, and what can go into the weights."""
