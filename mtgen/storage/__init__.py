"""Files on this system and behind URLs, and their local cache."""
