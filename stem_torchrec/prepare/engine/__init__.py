"""What every source shares: the working database, its stages, ids of values, the folder."""
