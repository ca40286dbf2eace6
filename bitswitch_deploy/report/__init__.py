"""What a run did, as frozen values, and their rendering: a table for people, JSON for machines."""
