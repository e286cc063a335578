"""Folders and files on disks and in object stores, and who may write them."""
