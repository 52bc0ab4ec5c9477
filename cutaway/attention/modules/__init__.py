"""The torch modules of mechanisms that compute more than softmax attention over heads."""
