"""The benchmarks: Entrepot beside its peers, in one run (docs/benchmarks.md)."""
