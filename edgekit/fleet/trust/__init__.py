"""Who is who: tokens of people, certificates of devices, and signed metadata of what may be installed.

tokens      of people, invitations and devices without TLS
authority   the fleet's own, which gives certificates to devices and to the service
keys        those that sign metadata, here or elsewhere
repository  the metadata, in the four roles of The Update Framework
files       how secrets lie on the disk
"""
