"""Solvers, one idea a file; each is a function from a Problem to the expert of every slot."""
