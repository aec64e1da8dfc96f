"""Status over HTTP, first form: the runs below a directory, read from their ledgers, on loopback only.

A run may be going on, finished or dead; nothing here writes to it. Pages and JSON say the same (`models`).
"""
