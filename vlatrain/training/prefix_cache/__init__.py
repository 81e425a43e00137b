"""The frozen prefix of each sample, computed once: how far it reaches, its computation, and where it is kept."""
