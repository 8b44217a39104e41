"""The errors that mixq raises on purpose; each says what is wrong, by which rule, and what to do."""


class MixqError(Exception):
    """Something that mixq cannot carry out; exit code 1 on the command line."""


class InputError(MixqError):
    """What the user brought (task, model, data, space, configuration, folder) cannot be used; exit code 2."""
