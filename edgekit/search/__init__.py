"""The joint search: precision by layer, tokens by block and what else a model can be made smaller with, at once.

space     what can be chosen, and how a choice is named and kept
anatomy   which layers of a captured graph belong together
knobs     what each setting alone costs and saves, measured on calibration data
lattice   the choices as paths through a graph, with figures on every arc
solve     the best path within limits (mixed-integer programming), and the front over them
model     what settings cost together: additive, with multipliers that measurements correct
verify    a choice as a real artifact: built, run and judged on samples that no knob was set on
state     what is known already, on disk
loop      solve, verify, repair, until the time is spent
"""
