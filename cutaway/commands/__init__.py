"""One file a verb: it parses, calls and prints. `cutaway/cli.py` names them and imports the one called."""
