"""Python starts with this where its folder is on PYTHONPATH: what only extras bring is not found."""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

ABSENT = {
    *("torch", "transformers", "jaxtyping", "huggingface_hub", "plotly", "llguidance", "jsonschema"),
    *("pandas", "pyarrow", "xarray", "sklearn", "scipy", "usearch", "datasets", "tensorboard"),
}


class Plain(PathFinder):
    """What finds modules on the path, but for these."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in ABSENT:
            return None
        return super().find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Plain
