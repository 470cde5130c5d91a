"""Studies: many cells whose common beginnings run once, resumable at any moment.

Import its modules one by one: `records` knows no JAX, so that a report can be made
where none is installed.
"""
