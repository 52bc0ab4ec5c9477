"""One file a defence.

A detector has ``scores(lm, cases, ...)``: the higher, the more like an attack; ``curve`` turns scores of
attacks and of hard negatives into the catch at each rate of false positives.
"""
