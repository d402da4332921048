"""Every table of a report as a value, from which the page, a CSV file and a LaTeX file are made alike.

A table is added by a function that returns a `Table` and a line of `all_tables`; nothing else has to know it.
"""
