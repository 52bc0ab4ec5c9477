# /// script
# dependencies = [
#     "dspy==3.4.1",
#     "numpy==2.3.5",
# ]
# ///
"""DSPy: predictions, JSON, embeddings."""

import dspy
from checks import check, model, url
from dspy.utils.exceptions import AdapterParseError


def predicted():
    try:
        return dspy.Predict(Answer)(question="What is 1+2?")
    except AdapterParseError as error:  # a small model does not follow what a prompt alone asks for
        return error.lm_response


lm = dspy.LM(f"openai/{model}", api_base=url + "/v1", api_key="none", max_tokens=400, cache=False)
dspy.configure(lm=lm)


class Answer(dspy.Signature):
    """Answer in a word."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()
    number: int = dspy.OutputField()


check("LM", lambda: lm("Hello", max_tokens=9))
adapter = dspy.JSONAdapter()
with dspy.context(adapter=adapter):
    check("Predict (answered)", predicted)
embedder = dspy.Embedder(f"openai/{model}", api_base=url + "/v1", api_key="none", caching=False)
check("Embedder", lambda: len(embedder(["a", "b"])))
