"""Which plan, under which link: pure functions over numbers. No torch, no sockets, no clocks."""
