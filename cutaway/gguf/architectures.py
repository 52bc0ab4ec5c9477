"""What llama.cpp's architectures take for granted, where metadata cannot say otherwise.

Facts of its sources at build 11549 (``src/models/``), by the words of ``general.architecture``. A model that
such an architecture cannot hold would be a file that llama.cpp does not open.
"""

# Those that read the divisors of rotary frequencies, ``rope_freqs.weight``; others refuse the tensor.
DIVISORS = {"apertus", "arcee", "exaone", "exaone-moe", "exaone4", "falcon-h1", "gemma4", "granite"}
DIVISORS |= {"granitehybrid", "granitemoe", "llama", "llama4", "mistral3", "nanbeige", "pangu-embedded"}
DIVISORS |= {"refact", "step35"}
# The same of LongRoPE's two tensors.
LONG_DIVISORS = {"apertus", "granite", "granitemoe", "llama", "minicpm", "minicpm3", "mistral3", "phi3"}
LONG_DIVISORS |= {"phimoe"}
# Those whose heads are together as wide as the model.
SQUARE = {"bert", "bloom", "cohere2", "command-r", "eurobert", "falcon", "gpt2", "gptneox", "jamba"}
SQUARE |= {"jina-bert-v3", "lfm2", "lfm2moe", "modern-bert", "mpt", "nemotron", "nomic-bert", "olmo"}
SQUARE |= {"olmo2", "olmoe", "phi2", "phi3", "qwen2", "qwen2moe", "stablelm", "starcoder", "starcoder2"}
# Those that do not take the embedding table for the head.
OWN_HEAD = {"apertus", "dots1", "gpt-oss", "gptneox", "kimi-linear", "minimax-m2", "nemotron", "olmo2"}
OWN_HEAD |= {"olmoe", "phi2", "qwen2moe", "stablelm"}
# Those whose cache needs a layer with a window.
WINDOWED = {"gemma4", "gpt-oss"}
