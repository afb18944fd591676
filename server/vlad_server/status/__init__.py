"""The page for people: what is loaded, who is served, how fast, and what one robot sees and gets."""
