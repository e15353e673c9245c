"""Commands for clusters: submitted runs and jobs, costs, profiles, and serving."""
