"""The tables as they came to be: revisions from the first schema on, for Alembic.

To change the tables: change `edgekit/fleet/store/tables.py`, then

    python -m edgekit.fleet.store.migrations "Add a note to devices"

writes the next revision from what differs; read it before it is committed. What it cannot know is yours: a new column
that may not be NULL wants `server_default="..."` in the revision (rows exist already), and rows that have to change are
changed there with plain SQL. A revision is never edited once others have it, and knows nothing of `tables.py`, which
moves on. There is no way back down: `edgekit fleet restore` brings back what a backup holds.
"""
