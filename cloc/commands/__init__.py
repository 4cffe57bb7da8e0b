"""The commands of ``python -m cloc``, a module a group: arguments and help in, one call of a folder out."""
