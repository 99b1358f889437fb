"""The one exception for what a user can put right.

>>> raise UserError("letter.png cannot be read as an image")
Traceback (most recent call last):
siamese_jax.errors.UserError: letter.png cannot be read as an image
"""


class UserError(ValueError):
    """An error caused by a file, a folder or a flag of the user.

    Its message says what was wanted and what was found. The command lines show it without
    a traceback and exit with status 1.
    """
