"""Many agents in one process that speak the real protocol over real HTTP, and play devices that have seen things.

line       one kept connection of one device: HTTP/1.1 by hand, because ten thousand ready-made clients cost too much
behaviour  what a device measures, sampled: latencies, link, agreement, and what a bad bundle does to them
actor      one device: enrolled, asking, updating, answering
scene      all of them together, bounded in count and time
outcome    what was counted

How far one such service goes, and what to build beyond: SCALE.md beside the fleet's package.
"""
