"""BIRD 2, the BGP speaker: its configuration as text, its process, and the driver of both."""
