"""Small data sets in real shards."""

from helpers.small_shards import _own_cache, encode, numbered, sample, write

__all__ = ["_own_cache", "encode", "numbered", "sample", "write"]
