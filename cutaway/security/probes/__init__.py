"""One file a probe; ``cutaway/security/__init__.py`` says what one holds."""
