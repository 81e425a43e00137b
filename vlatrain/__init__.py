"""vlatrain: adapters for frozen vision-language models, trained from one configuration.

Importing the package makes our adapter methods known to PEFT (once PEFT itself is imported), so that
`import vlatrain; PeftModel.from_pretrained(backbone, "run/adapter")` works. The import itself is cheap: neither torch
nor PEFT is imported by it.
"""

__version__ = "0.1.0"
