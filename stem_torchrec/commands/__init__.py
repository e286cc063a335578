"""The commands, one file each: its options, and what it does with them.

Heavy imports stand inside the commands, so that ``--help`` and mistakes answer at once.
"""
