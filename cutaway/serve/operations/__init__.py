"""Operating a server: access, loading of models, life cycle, log and metrics."""
