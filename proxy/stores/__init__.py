"""Where the cache keeps its bytes and what it knows of them."""
