"""The commands of `armm`, one file each."""
