"""
Bytes to values and back, for every structure of the format.  Nothing here does I/O.

One module per structure family, each structure declared with construct (see `record`).
"""
