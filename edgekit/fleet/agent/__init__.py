"""The daemon on a device or node: it makes what runs here what the fleet wants, and never less than what ran before.

home      the folder: identity, two slots, what is known of them; every change of it is one rename
identity  enrolment: a key made here, a certificate from the fleet
fetch     the files of a bundle that are not here yet
trial     a bundle in a process of its own, answering its golden inputs
runtime   the process that answers requests, from the slot that counts
update    the steps from one bundle to the next, each of which may be the last before the power goes
windows   what was seen, kept in a bounded ring until the fleet has it
daemon    the loop
"""
