"""The fast path: the same ids as the definition, from the native core (native/scan.cpp, native/bpe.cpp)."""

from cutaway.tokenizer.pretokenize import CL100K, PATTERNS, SPELLINGS, Split, Step, fused

_SPELT = dict(SPELLINGS[:4])

# The steps that a scanner in native/scan.cpp stands for.
SCANNED: dict[tuple[Step, ...], str] = {
    fused(tuple(map(Split, patterns))): scanner
    for scanner, patterns in {
        "lines": PATTERNS["gemma4"],
        "gpt2": PATTERNS["gpt-2"],
        "smollm": PATTERNS["smollm"],
        "cl100k": (CL100K,),
        "llama3": PATTERNS["llama3"],
        "qwen2": PATTERNS["qwen2"],
        "qwen2_any": _SPELT["qwen2"],
        "qwen35": PATTERNS["qwen35"],
        "qwen35_any": _SPELT["qwen35"],
        "o200k": PATTERNS["gpt-4o"],
        "tekken": PATTERNS["tekken"],
        "deepseek3": PATTERNS["deepseek-v3"],
    }.items()
}
