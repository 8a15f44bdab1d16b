"""The thin HTTP front: plain requests in, plain responses out; only `server` knows aiohttp."""
