"""Settings: the sections of a config, the types of their keys, strict YAML, and the command line."""
