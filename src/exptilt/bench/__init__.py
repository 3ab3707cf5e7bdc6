"""Speed against other ways of running the same chains: ``exptilt bench``. See benchmarks/README.md."""
