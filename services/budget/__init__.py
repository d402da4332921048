"""What an arm may spend and what it has spent.

`limits` decides whether another trial is paid for; `accounting` adds up what trials have cost; `tally` keeps running
counts of both.
"""
