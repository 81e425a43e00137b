"""Points and patterns, and the PEFT method that attaches adapters to them by hooks."""
