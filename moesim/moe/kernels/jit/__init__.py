"""Device code: Triton functions alone, importing nothing but Triton; what calls them is one level up."""
