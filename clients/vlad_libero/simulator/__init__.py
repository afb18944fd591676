"""The LIBERO simulator behind a small interface; the only folder that imports it, and late."""
