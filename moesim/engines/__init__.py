"""Code that runs inside serving engines."""
