"""What can be wrong with a configuration before torch is imported."""
