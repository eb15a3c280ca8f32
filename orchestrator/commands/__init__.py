"""The commands, a file a group: each adds its options to a parser and turns a result into what a person reads."""
