"""What a load does, as generators of records: the simulated machine runs them in virtual time.

Owns the loops, the error detection and the poll of the sensors; imports nothing of this package
outside this folder, so that they can run in a child under the delivered interpreter.
"""
