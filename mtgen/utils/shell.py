"""Commands in messages, quoted so that they can be copied into a shell."""

import shlex


def shell_command(command: str, *words: object) -> str:
    """A command and its arguments, quoted where a shell would split or expand them."""
    return f"{command} {shlex.join(map(str, words))}".rstrip()
