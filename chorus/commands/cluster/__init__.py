"""Work on machines of others: submitted runs and jobs, what they cost, profiles, and serving."""
