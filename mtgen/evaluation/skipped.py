"""Why a metric cannot be had."""


class Skipped(Exception):
    """A metric that cannot be had from this run or data set; the message is the reason."""
