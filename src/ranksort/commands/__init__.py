"""The commands: the arguments of each function, their types and its docstring make the options and their help."""
