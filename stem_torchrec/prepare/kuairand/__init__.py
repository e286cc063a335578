"""A KuaiRand release, or files in its format."""
