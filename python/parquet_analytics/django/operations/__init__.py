"""What people who run a site look at: checks, the doctor, the status of each day, and what commands print."""
