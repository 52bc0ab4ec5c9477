"""Attribution graphs: which parts of a forward pass made which others, and at last the logits."""
