"""`cutaway pull`: fetch a model by name into the cache."""

from pathlib import Path

from cutaway import store
from cutaway.commands import console
from cutaway.commands.options import Json
from cutaway.commands.terminal import note


def pull(name: str = store.DEFAULT, /, *, as_json: Json = False) -> None:
    """Fetch a model into the cache; one that is there already is left as it is.

    `cutaway models --known` lists the names that are known; any other model is ORG/NAME on Hugging Face. A
    pull that was interrupted goes on where it stopped, and each file has the checksum that is listed for it.
    HF_TOKEN is your token, HF_ENDPOINT a mirror, HF_HUB_OFFLINE asks nothing; CUTAWAY_HOME and HF_HOME say
    where the caches are.

    **Examples:**

    cutaway pull smollm2

    cutaway pull qwen3-0.6b

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
        if (licence := _licence(path)) is not None:
            note(f"Its licence: {licence}")


def _licence(path: Path) -> str | None:
    """What the model's card states, of one that was fetched from Hugging Face."""
    return next((one.licence for one in store.cached() if one.path == path and store.revision(path)), None)
