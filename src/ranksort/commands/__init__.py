"""The commands: the arguments, types and docstring of each function become its options and their help."""
