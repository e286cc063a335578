"""Raw files of one table, as a description says what they hold."""
