"""The daemon on a device or node: it makes what runs here what the fleet wants, and never less than what ran before.

disk       every change on the disk, one step after which the power may go
home       the folder: who this is, slots, what is known of them
slots      bundles on the disk: filled beside those that count, looked through, let go
recovery   what counts at a start, whatever the disk has been through
identity   who this device is; enrolment: a key made here, a certificate from the fleet
contact    the fleet as this device asks it; errand: what takes large libraries, in a process of its own
trusted    what the fleet's signed metadata vouches for
fetch      the files of a bundle that are not here yet
machine    what can run here
trial      a bundle in a process of its own, answering its golden inputs
runtime    the process that answers requests, from the slots that count
update     the steps from one bundle to the next, each of which may be the last before the power goes
orders     what the fleet wants of applications; reached: whether it is reached, for a person who asks
applications  how a program answers with what its agent has proven; comparison: beside the full model
tally      what was seen, as sums; spool: what applications saw; node_seen: what the node did; health: how the device is
collector  makes a window of these every minute
ring       windows, kept within bounds until the fleet has them
daemon     the loop
assembly   all of these put together; status: an agent from outside; unit: as a systemd service
"""
