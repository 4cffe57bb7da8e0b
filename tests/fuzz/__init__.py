"""Hostile and damaged inputs by the thousand, each judged against a plain reference reader.

``python -m tests.fuzz --seed S --inputs N``. ``runner`` feeds one input after another to a child process that may crash
or hang; ``kinds`` says what an input is; a file each holds the inputs of one reader of the package.
"""
