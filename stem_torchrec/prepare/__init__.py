"""Raw logs -> prepared folders, and the check of a prepared folder."""
