"""What shows that the checks themselves work: on simulated machines, every line fails when it should.

Owns the declared proofs, the matrix over them, false alarms and losses found, and the calibration of
the model. Must not judge: everything goes through the run that everybody uses.
"""
