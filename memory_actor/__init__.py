"""The episodic memory and the process that owns it: equations, shards, tenants, ledger, actor.

No HTTP, no model and no API key is known here. Ray is imported by `actor.py` only.
"""
