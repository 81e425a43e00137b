"""vlatrain: adapters for frozen vision-language models, trained from one configuration.

Importing the package makes its adapter methods known to PEFT: at once where PEFT is imported already, else as soon as
it is. So `import vlatrain; PeftModel.from_pretrained(backbone, "run/adapter")` works, and the command line still
answers without importing torch.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

__version__ = "0.1.0"


class _RegisterWithPeft(importlib.abc.MetaPathFinder):
    """Finds PEFT once, as the import system would have, and registers our method when it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                importlib.import_module("vlatrain.injection.peft_method")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "peft" in sys.modules:
    importlib.import_module("vlatrain.injection.peft_method")
else:
    sys.meta_path.insert(0, _RegisterWithPeft())
