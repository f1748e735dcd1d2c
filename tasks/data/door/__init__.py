"""The door of the data: what a config says of them, as plain arguments of readers and transforms. No room below knows a config."""
