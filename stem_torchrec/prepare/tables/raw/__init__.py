"""Raw files as they are found: headers, types, partitions, rows, and what is wrong with them."""
