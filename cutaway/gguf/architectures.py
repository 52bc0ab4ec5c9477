"""Defaults of llama.cpp's architectures that no metadata can change.

Facts of its sources at build 11549 (``src/models/``), by the words of ``general.architecture``. A model that
such an architecture cannot hold would be a file that llama.cpp does not open.
"""

# Architectures that read the divisors of rotary frequencies, ``rope_freqs.weight``; others refuse the tensor.
DIVISORS = {"apertus", "arcee", "cogvlm", "deci", "exaone", "exaone-moe", "exaone4", "falcon-h1"}
DIVISORS |= {"gemma4", "granite", "granite_swa", "granitehybrid", "granitemoe", "llada", "llama"}
DIVISORS |= {"llama-embed", "llama4", "minicpm", "mistral3", "nanbeige", "pangu-embedded", "refact"}
DIVISORS |= {"step35"}
# The same of LongRoPE's two tensors.
LONG_DIVISORS = {"apertus", "deci", "granite", "granite_swa", "granitemoe", "llama", "llama-embed"}
LONG_DIVISORS |= {"minicpm", "minicpm3", "mistral3", "pangu-embedded", "phi3", "phimoe", "refact"}
LONG_DIVISORS |= {"step35"}
# Architectures whose heads are together as wide as the model.
SQUARE = {"arctic", "baichuan", "bailingmoe2", "bert", "bitnet", "bloom", "chameleon", "codeshell"}
SQUARE |= {"cohere2", "command-r", "dbrx", "deepseek", "dream", "eurobert", "falcon", "gpt2", "gptneox"}
SQUARE |= {"grok", "internlm2", "jais", "jamba", "jina-bert-v2", "jina-bert-v3", "lfm2", "lfm2moe"}
SQUARE |= {"llada-moe", "modern-bert", "mpt", "nemotron", "neo-bert", "nomic-bert", "nomic-bert-moe"}
SQUARE |= {"olmo", "olmo2", "olmoe", "orion", "phi2", "phi3", "phimoe", "plamo", "qwen", "qwen2"}
SQUARE |= {"qwen2moe", "stablelm", "starcoder", "starcoder2", "xverse"}
# Architectures that do not use the embedding table as the head.
OWN_HEAD = {"apertus", "baichuan", "bailingmoe", "bailingmoe2", "codeshell", "dbrx", "deepseek4"}
OWN_HEAD |= {
    "dots1",
    "exaone-moe",
    "glm5-next",
    "gpt-oss",
    "gptneox",
    "hy_v4",
    "internlm2",
    "jais",
    "kimi-k3",
}
OWN_HEAD |= {"kimi-linear", "llada-moe", "maple", "mellum", "mimo2", "minimax-m2", "minimax-m3"}
OWN_HEAD |= {"muse-glimmer", "nemotron", "olmo2", "olmoe", "orion", "phi2", "phimoe", "plamo", "qwen"}
OWN_HEAD |= {"qwen2moe", "stablelm", "step35", "talkie", "xverse"}
# Architectures whose cache needs a layer with a window.
WINDOWED = {"cohere2moe", "deepseek4", "exaone-moe", "gemma3n", "gemma4", "gpt-oss"}
WINDOWED |= {"granite_swa", "maple", "mimo2"}
