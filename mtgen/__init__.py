"""mtgen: one generator and one discriminator, trained on many tasks at once."""

__version__ = "0.1.0"
