"""The page: its files, and the `/api/…` behind its four faces."""
