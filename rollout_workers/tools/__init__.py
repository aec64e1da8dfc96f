"""The tools of CWM's software-engineering protocol: how a call is written, and what each does in a sandbox.

calls.py       `<tool: NAME>` … `</tool>` in a reply, exactly one a turn
edits.py       SEARCH/REPLACE on a text; pure
repository.py  bash, edit, create and submit on one sandbox
"""
