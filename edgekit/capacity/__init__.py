"""How many servers a load needs, and why: formulae, a simulation with the server's own policies, and measurements.

demand       what is asked for: devices, their rate, arrivals over time, the latency objective
service      how long one worker takes for n rows: compute, memory traffic, what is fixed; fitted or predicted
calibration  the same measured: the bundle's real session at several batch sizes
overhead     what the node itself costs a request, measured against a real node in a process of its own
probe        that node, pinned to a core, and the open-loop load that is sent to it
replica      one server: its workers, batching, memory and links
queueing     what formulae say of it
simulation   what happens in virtual time, decided by the class that the real server decides with
balance      many replicas behind one balancer
sizing       replicas, cost, and what binds
"""
