"""
The rules of a file, beyond what an open looks at: one module for each family of structures.

They read through functions and never write; what they find goes to a `Collector`, and nothing that
a file holds makes them raise.
"""
