"""Many runs of one recipe: hyper-parameter search, and the ladder of sizes behind a scaling law."""
