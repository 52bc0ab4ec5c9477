"""Anthropic's API: Messages and models."""
