"""The one exception for mistakes that the user can mend. Imports nothing, so that every layer may raise it."""


class DrbenchError(Exception):
    """Something the user can fix: the message says what was expected, what came and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def did_you_mean(word: str, known) -> str:
    """`"; did you mean 'rcm'? available: constant, rcm"` for an unknown name."""
    import difflib

    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} available: {', '.join(known) or 'none'}"
