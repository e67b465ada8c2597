"""The random test: page views are written, exported, deleted, killed and cut off, and after every step independent
readers look whether each row is where it has to be.

- `site`: the application that writes page views, and the model of what it wrote
- `archive`: reads the stored objects with boto3 and pyarrow, and checks each by itself
- `worker`: a child process that exports and deletes on command, and can be killed at any step
- `invariant`: what has to hold between the database, the stored files and the model
- `player`: makes the calls and judges how they ended
- `story`, `strangers`, `erasures`, `steps`: what can happen
- `faults`: what can go wrong while it happens, by way of `proxies`
- `run`: the seeded sequence of steps, and its report

Nothing here reads a file or the database through the package under test.
"""
