"""Protocol `paper`: the metrics of the public evaluation code, faults and all, for comparison.

Written from a description of what that code computes, and checked against numbers it printed. Not
for decisions: `protocol.FAULTS` says what is wrong with each number; `evaluate.ours` is the answer.
"""
