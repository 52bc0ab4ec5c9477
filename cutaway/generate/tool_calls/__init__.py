"""Tool calls: the format of a model's template, a grammar that holds an answer to it, and the parser."""
