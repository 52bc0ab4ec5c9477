"""What a model is worth: how well it foretells a text, and how far it is from another model."""
