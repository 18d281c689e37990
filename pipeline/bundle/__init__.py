"""Vectors on disk, for a database that cannot be reached: writing a folder of Parquet files, and reading it checked.

docs/bundle.md describes what is in it. Owns pyarrow beside `catalog`; knows no database.
"""
