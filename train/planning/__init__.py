"""What ``train.plan`` is made of: topologies, the project's programs, the compiler, its answer."""
