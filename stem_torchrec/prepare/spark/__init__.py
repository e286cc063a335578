"""Raw files and their description -> prepared folder, by the executors of a Spark cluster.

The same folder as ``prepare/tables`` makes on one machine. Executors need no package of ours: all
that they do is Spark's own functions. Needs the package ``pyspark`` on the driver, which calls it.
"""
