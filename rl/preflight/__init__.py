"""Checks before a long run: files, disk, memory, Ray, threads, versions; estimates memory and step time."""
