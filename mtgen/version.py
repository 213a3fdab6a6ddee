"""What mtgen is: its version, what it is in one line, and the folder that its code runs from."""

from pathlib import Path

__version__ = "0.1.0"
DESCRIPTION = "one generator and one discriminator, trained on many tasks at once."
PACKAGE = Path(__file__).resolve().parent
