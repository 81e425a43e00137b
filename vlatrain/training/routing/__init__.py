"""A router at work: what it reads of samples (`reader`), the runs that it asks (`hosts`), and both together (`router`)."""
