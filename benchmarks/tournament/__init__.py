"""Methods compared fairly: an equal search for each, runs over seeds, a ledger of what came out, tables made from it.

``study → plan → ledger → child → runs → runner`` train and measure; ``spread → table → documents`` and ``fit``,
``frontier`` read the ledger alone, and ``cost`` measures speed. The command is ``python -m benchmarks.tournament``.
"""
