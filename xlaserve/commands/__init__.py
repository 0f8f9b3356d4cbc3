"""Command-line commands, one module each; `xlaserve.cli` parses and dispatches."""
