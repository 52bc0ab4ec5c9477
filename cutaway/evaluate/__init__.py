"""How good a model is, in numbers with intervals: perplexity, tasks, answers that are judged, arenas."""
