"""The other libraries of this kind, each in a virtual environment and a process of its own."""
