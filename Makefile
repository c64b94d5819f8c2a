# `make demo` and `make test` set up all they need on a fresh machine.
