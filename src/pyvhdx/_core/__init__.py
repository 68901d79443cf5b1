"""
The engine of one open file: from bytes to the place of every virtual byte.

`opening` runs the others in the order that the format asks for: headers, log, regions, metadata,
BAT.  Nothing here knows of parents' files or of the caller.
"""
