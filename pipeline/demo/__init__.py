"""A made-up shop: products drawn as vector shapes, written as a catalog with everything a real one has.

Nothing here is downloaded and nothing needs a model; the same arguments give the same bytes.
"""
