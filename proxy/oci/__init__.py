"""The registry protocol as values: pure parsers and rules that know neither the network, the disk nor the clock."""
