"""What a run will cost, before anything runs: parameters, operations, memory, time."""
