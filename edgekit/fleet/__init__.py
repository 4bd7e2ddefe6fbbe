"""The fleet: which device runs which bundle under which plan, whether it answers right, and what to do next.

protocol     what travels between agents, people and the service; data only
telemetry    windows of what a device saw: histograms, drift, a faulty one among its peers
rollouts     groups, stages and guards, and what to do next: the policy alone, without clocks and threads
trust        who is who: certificates of devices, tokens of people, signed metadata of bundles
registry     bundles by content: files once each, in a folder or an S3-compatible store
store        the database: tables, migrations, backup
service      what is done to all of these together; the one place that changes the database
web          what the page looks like: templates, charts, words
server       the service over HTTP: API, pages, events
client       the same API from Python, used by the command line and the agent
agent        the daemon on a device: two slots, verified, checked, switched, reported
simulation   many agents in one process that speak the real protocol

Imports point up this list, never down. No room knows torch.
"""
