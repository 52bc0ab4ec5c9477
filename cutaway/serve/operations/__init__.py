"""What keeps a server running: who may ask, which models are loaded, its life cycle, log and metrics."""
