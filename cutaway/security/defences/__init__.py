"""One file a defence. Each is measured as a curve: what it catches at each rate of false positives.

A prompt's defence rewrites the question and the text (``guard(question, text, strength, random)``); a
detector scores texts, the higher the more like an attack (``detector(lm, attacks, others)`` returns the
scorer); an output check accepts or refuses the answer.
"""
