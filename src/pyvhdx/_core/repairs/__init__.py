"""
Planning a repair: from what a file holds to what it should hold, structure by structure.

Nothing here reads a whole file or touches one.  `ops.repair` asks for the plans in the order in which
the structures depend on one another, and lets a `Mender` carry them out.
"""
