"""Commands that are said to be copied, as one types them into a shell."""

import shlex


def shell_command(command: str, *words: object) -> str:
    """A command with further words, which are quoted where a shell would take them apart."""
    return f"{command} {shlex.join(map(str, words))}".rstrip()
