"""The command line: one short file per command. It parses, calls, prints, and has no logic of its own."""
