"""A model for many at once: the engine that reads their texts together, and the HTTP API in front of it."""
