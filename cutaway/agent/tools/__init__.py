"""The built-in tools: a file each, with ``make(root, reader)``, and the folder is the registry."""
