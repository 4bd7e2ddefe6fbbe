"""Who is who: tokens of people, certificates of devices, and signed metadata of what may be installed."""
