"""Looking into a model while it reads: what is seen, what moved the answer, and what happens when a part is
changed.
"""
